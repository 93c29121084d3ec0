"""The KL autoencoder against the official numbers and live against diffusers; its Gaussians."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.autoencoder import blocks
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.autoencoder.model import (
    kl,
    mean_and_log_variance,
    mean_and_std,
    sample_latents,
    scaled_sample,
)
from lit_jax.models.functional import abstract_params, count_params
from lit_jax.models.registry import model_config
from support.autoencoder_cases import (
    GOLDEN,
    decode,
    encode,
    golden_model,
    in_bfloat16,
    model_of,
    normal,
    params_of,
    tiny,
)
from support.golden_cases import COPIES, load_arrays, nhwc, relative_error
from support.live_parity import live_seed, randomise_, state_of

TOLERANCE = 1e-5

golden = pytest.mark.parametrize(("case", "folder"), GOLDEN.values(), ids=GOLDEN)


# --- parity ---


@golden
def test_official_encoder(case: str, folder: Path) -> None:
    arrays, model = load_arrays(folder, case), golden_model(case, folder)
    moments = encode(model, nhwc(arrays["image"]))
    assert moments.dtype == jnp.float32
    assert relative_error(moments, nhwc(arrays["moments"])) < TOLERANCE


@golden
def test_official_decoder(case: str, folder: Path) -> None:
    arrays, model = load_arrays(folder, case), golden_model(case, folder)
    expected = nhwc(arrays["decoded"])
    assert relative_error(decode(model, nhwc(arrays["z"])), expected) < TOLERANCE
    scaled = jnp.asarray(nhwc(arrays["z"]) * {"vae_sd": 0.18215, "vae_sdxl": 0.13025}[case])
    image = jax.jit(lambda model, z: model.decode_scaled(z))(model, scaled)
    assert relative_error(image, expected) < TOLERANCE


@golden
def test_official_gaussian(case: str, folder: Path) -> None:
    """From stored moments alone, without a network."""
    arrays = load_arrays(folder, case)
    moments, factor = nhwc(arrays["moments"]), golden_model(case, folder).config.scaling_factor
    mean, std = mean_and_std(moments)
    np.testing.assert_array_equal(mean, moments[..., :4])
    assert relative_error(std, nhwc(arrays["std"])) < 1e-6
    assert relative_error(kl(moments), arrays["kl"]) < 1e-6
    noise = jnp.asarray(nhwc(arrays["eps"]))
    for latents in (
        sample_latents(moments, noise, factor),
        scaled_sample(mean, std, noise, factor),
    ):
        assert relative_error(latents, nhwc(arrays["scaled_sample"])) < 1e-6


@pytest.mark.parametrize("draw", range(2))
def test_live_parity_with_diffusers(draw: int) -> None:
    """A random architecture with random weights on random non-square images."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    seed = live_seed() + draw
    rng = np.random.default_rng(seed)
    levels, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    reference = diffusers.AutoencoderKL(
        in_channels=int(rng.integers(1, 4)),
        out_channels=int(rng.integers(1, 4)),
        latent_channels=int(rng.integers(1, 6)),
        block_out_channels=tuple(int(groups * k) for k in rng.integers(2, 6, size=levels)),
        layers_per_block=int(rng.integers(1, 3)),
        norm_num_groups=groups,
        scaling_factor=float(rng.uniform(0.1, 1.0)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()
    randomise_(reference, seed)
    model = model_of(state_of(reference), dict(reference.config))
    assert model.config.scaling_factor == reference.config.scaling_factor
    step = model.config.downsampling
    height, width = 4 + rng.permutation(7)[:2]
    shapes = (
        (2, reference.config.in_channels, height * step, width * step),
        (2, reference.config.latent_channels, height, width),
    )
    image, z = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    with torch.no_grad():
        moments = reference.encode(torch.from_numpy(image)).latent_dist.parameters.numpy()
        decoded = reference.decode(torch.from_numpy(z)).sample.numpy()
    assert relative_error(encode(model, nhwc(image)), nhwc(moments)) < TOLERANCE, model.config
    assert relative_error(decode(model, nhwc(z)), nhwc(decoded)) < TOLERANCE, model.config


# --- the network ---


@pytest.mark.parametrize("name", ["SD-VAE", "SDXL-VAE"])
def test_released_size(name: str) -> None:
    config = model_config(name)
    assert count_params(abstract_params(config)) == 83_653_863
    assert config.downsampling == 8


def test_reconstruction_is_the_decoded_mean() -> None:
    model = tiny()
    image = normal(1, 2, 8, 12, 3)
    mean, _ = mean_and_std(encode(model, image))
    reconstruct = jax.jit(lambda model, x: model(x))
    assert relative_error(reconstruct(model, image), decode(model, mean)) < 1e-5


def test_bfloat16() -> None:
    """Float32 outputs, as close to the float32 network as eight bits of mantissa allow: measured
    0.013 and 0.011 of the largest output."""
    model = golden_model("vae_sd")
    half = in_bfloat16(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(half))} == {jnp.dtype("f4")}
    arrays = load_arrays(COPIES, "vae_sd")
    for call, name in ((encode, "image"), (decode, "z")):
        out, expected = (call(m, nhwc(arrays[name])) for m in (half, model))
        assert out.dtype == jnp.float32
        assert 1e-4 < relative_error(out, expected) < 0.03


@pytest.mark.parametrize("dtype", ["float16", "half"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"dtype '{dtype}'.*bfloat16, float32"):
        tiny(dtype=dtype)


def test_group_norm_statistics_are_float32() -> None:
    """A large mean in bfloat16: sums of it would have no digits left for the variance."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(100.0, 2.0, (1, 64, 64, 4)), jnp.bfloat16)
    norm = blocks.GroupNorm(4, 2)
    norm.scale[...] = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    norm.bias[...] = jnp.asarray([0.5, 0.0, -0.5, 1.0])
    groups = np.asarray(x, np.float64).reshape(64 * 64, 2, 2)
    centred = groups - groups.mean((0, 2), keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean((0, 2), keepdims=True) + 1e-6)
    expected = normal.reshape(x.shape) * np.asarray(norm.scale) + np.asarray(norm.bias)
    out = norm(x)
    assert out.dtype == jnp.bfloat16
    assert np.all(np.abs(np.asarray(out, np.float64) - expected) <= np.abs(expected) / 256 + 1e-5)
    # The mean itself is rounded to float32, 50 times as large as the spread.
    assert relative_error(norm(x.astype(jnp.float32)), expected) < 5e-6


def test_group_norm_epsilon() -> None:
    """Nearly constant images tell 1e-6 from the 1e-5 that torch assumes."""
    x = jnp.asarray([[[[1e-3], [-1e-3]]]])
    expected = np.sqrt(1e-6 / 2e-6) * np.asarray([[[[1.0], [-1.0]]]])
    assert relative_error(blocks.GroupNorm(1, 1)(x), expected) < 1e-5


@pytest.mark.parametrize("chunk", [7, 34, 35])
def test_attention_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as all queries at once, without the N x N logits."""
    q, k, v = normal(2, 3, 2, 35, 1, 8)

    def call() -> tuple[jax.Array, str]:
        traced = jax.jit(lambda q: blocks.chunked_attention(q, k, v)).trace(q)
        return traced.lower().compile()(q), str(traced.jaxpr)

    expected, whole = call()
    monkeypatch.setattr(blocks, "QUERY_CHUNK", chunk)
    out, chunked = call()
    assert relative_error(out, expected) < 1e-6
    assert "35,35]" in whole
    assert ("35,35]" in chunked) == (chunk == 35)


def test_attention_is_chunked_at_1024_pixels() -> None:
    """No array of the program has as many numbers as the logits of one image have."""
    tokens = jax.ShapeDtypeStruct((1, 128 * 128, 1, 512), jnp.float32)
    program = jax.make_jaxpr(blocks.chunked_attention)(tokens, tokens, tokens)
    assert "16384,16384]" not in str(program)
    assert f"{blocks.QUERY_CHUNK},16384]" in str(program)


# --- inputs ---


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((8, 8, 3), "f4", r"images of shape \(8, 8, 3\); this model takes \[batch"),
        ((1, 3, 8, 8), "f4", r"images of shape \(1, 3, 8, 8\).*3 channels"),
        ((1, 8, 9, 3), "f4", r"\(1, 8, 9, 3\); height and width must be multiples of 2"),
        ((0, 8, 8, 3), "f4", r"images of shape \(0, 8, 8, 3\)"),
        ((1, 8, 8, 3), "u1", r"images are uint8; they must be floating point"),
    ],
)
def test_wrong_images(shape: tuple[int, ...], dtype: str, message: str) -> None:
    images = np.zeros(shape, dtype)
    for call in (tiny().encode, tiny().encode_tiled):
        with pytest.raises(ValueError, match=message):
            call(images)


def test_wrong_latents() -> None:
    for call in (tiny().decode, tiny().decode_scaled, tiny().decode_tiled):
        with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 4, 8\).*4 channels"):
            call(jnp.zeros((1, 4, 4, 8)))


def test_configuration_limits() -> None:
    with pytest.raises(ValueError, match=r"\(4, 9\): 9 is not divisible by norm_num_groups 2"):
        AutoencoderConfig(block_out_channels=(4, 9), norm_num_groups=2)
    with pytest.raises(ValueError, match=r"scaling_factor is 0.0; it must be positive"):
        AutoencoderConfig(scaling_factor=0.0)


# --- Gaussians ---


def test_log_variance_is_clipped() -> None:
    moments = np.asarray([[1.0, 2.0, 3.0, -100.0, 0.0, 100.0]])
    mean, log_variance = mean_and_log_variance(moments)
    np.testing.assert_array_equal(mean, [[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(log_variance, [[-30.0, 0.0, 20.0]])
    np.testing.assert_allclose(mean_and_std(moments)[1], np.exp([[-15.0, 0.0, 10.0]]), rtol=1e-6)


def test_kl_of_the_standard_normal_is_zero() -> None:
    np.testing.assert_array_equal(kl(jnp.zeros((2, 3, 3, 8))), [0.0, 0.0])


def test_half_precision_moments_become_float32() -> None:
    """Caches may hold float16; the numbers made from them are float32."""
    for part in (*mean_and_std(np.ones((1, 2, 2, 8), np.float16)), kl(np.ones((1, 2), "f2"))):
        assert part.dtype == jnp.float32


def test_keys_draw_standard_normal_noise() -> None:
    moments = jnp.concatenate([jnp.full((2, 64, 64, 4), 3.0), jnp.full((2, 64, 64, 4), -1.4)], -1)
    latents = sample_latents(moments, jax.random.key(0), 0.5)
    assert np.mean(latents) == pytest.approx(1.5, abs=0.01)
    assert np.std(latents) == pytest.approx(0.5 * np.exp(-0.7), rel=0.02)
    assert not np.array_equal(latents[0], latents[1])


def test_latent_of_an_image_does_not_depend_on_its_batch() -> None:
    """With one key per image."""
    moments = normal(3, 3, 4, 6, 8)
    keys = jax.random.split(jax.random.key(4), 3)
    together = sample_latents(moments, keys, 0.2)
    alone = sample_latents(moments[2:], keys[2:], 0.2)
    np.testing.assert_array_equal(together[2:], alone)


@pytest.mark.parametrize(
    "noise",
    [
        jax.random.PRNGKey(0),
        jax.random.split(jax.random.key(0), 3),
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 4), np.int32),
    ],
    ids=["raw key", "keys of another batch", "shape", "integers"],
)
def test_wrong_noise(noise: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"key_or_noise is .*; it must be one jax.random.key, 2"):
        sample_latents(jnp.zeros((2, 4, 4, 8)), noise, 1.0)


def test_odd_moments() -> None:
    with pytest.raises(ValueError, match=r"moments of shape \(1, 2, 2, 7\).*must be even"):
        mean_and_std(jnp.zeros((1, 2, 2, 7)))
