"""What PixArt takes: images, times and captions of the right shapes, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.config import from_mapping
from lit_jax.models.conditions import TextCondition, drop_captions
from lit_jax.models.family import architecture
from lit_jax.models.functional import abstract_params, apply_fn, with_params
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.models.pixart.model import PixArt
from support.attention_cases import random_like
from support.pixart_cases import batch, forward, quick_jit, tiny

TOKENS = np.zeros((2, 5, 10), np.float32)


def trace(config: PixArtConfig, x: Any, t: Any, cond: Any) -> Any:
    """What the network does with the shapes; no number is computed."""
    abstract = abstract_params(config)
    return jax.eval_shape(lambda p: apply_fn(config)(p, x, t, cond), abstract)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 8, 4), r"takes \[batch, height, width, channels\] = \[B, H, W, 3\]"),
        ((2, 3, 8, 8), r"input of shape \(2, 3, 8, 8\); this model takes"),
        ((8, 8, 3), r"input of shape \(8, 8, 3\)"),
        ((2, 0, 8, 3), r"input of shape \(2, 0, 8, 3\)"),
        ((2, 8, 7, 3), "input of 8 x 7; height and width must be multiples of patch_size 2"),
    ],
)
def test_images(shape: tuple[int, ...], message: str) -> None:
    config = tiny()
    with pytest.raises(ValueError, match=message):
        trace(config, jnp.zeros(shape), *batch(config)[1:])


@pytest.mark.parametrize("t", [7, [7], [7, 8, 9], [[7], [8]]])
def test_one_time_per_image(t: Any) -> None:
    config = tiny()
    x, _, cond = batch(config)
    with pytest.raises(ValueError, match=r"t of shape .* one value per image, \[2\]"):
        trace(config, x, jnp.asarray(t), cond)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (TOKENS, r"cond is ndarray; this model takes a TextCondition\(tokens, mask\)"),
        (None, "cond is NoneType"),
        (TextCondition(TOKENS[:1]), r"shape \(1, 5, 10\) for 2 image\(s\)"),
        (TextCondition(TOKENS[:, None]), r"\(2, 1, 5, 10\) .* must be \[2, tokens, 10\]"),
        (TextCondition(TOKENS[..., :9]), "caption_channels 10; they must be"),
        (TextCondition(TOKENS[:, :0]), r"shape \(2, 0, 10\)"),
        (
            TextCondition(TOKENS, np.ones((2, 4))),
            r"caption mask of shape \(2, 4\) .* it must be \[2, 5\]",
        ),
        (TextCondition(TOKENS, np.ones((1, 5))), r"caption mask of shape \(1, 5\)"),
        (
            TextCondition(TOKENS, np.array([[0, -10000, 0, 0, 0]] * 2)),
            r"caption mask holds -10000; .* \(not a bias",
        ),
        (
            TextCondition(TOKENS, np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])),
            "caption 1 of 2 has an all-zero mask: softmax over nothing",
        ),
        (TextCondition(TOKENS, img_hw=np.ones((2, 2))), "img_hw is given, but .*=False"),
        (TextCondition(TOKENS, aspect_ratio=np.ones((2, 1))), "aspect_ratio is given, but"),
    ],
)
def test_captions(cond: Any, message: str) -> None:
    config = tiny()
    with pytest.raises(ValueError, match=message):
        trace(config, *batch(config)[:2], cond)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((None, None), "img_hw is missing, but the model has micro_condition=True"),
        ((np.ones((2, 2)), None), "aspect_ratio is missing, but"),
        ((np.ones((1, 2)), np.ones((2, 1))), r"img_hw of shape \(1, 2\) .* \[2, 2\]"),
        ((np.ones((2, 2)), np.ones(2)), r"aspect_ratio of shape \(2,\) .* \[2, 1\]"),
    ],
)
def test_micro_conditions(sizes: tuple[Any, Any], message: str) -> None:
    config = tiny(micro_condition=True)
    with pytest.raises(ValueError, match=message):
        trace(config, *batch(config)[:2], TextCondition(TOKENS, None, *sizes))


def test_a_caption_of_any_length() -> None:
    config = tiny(depth=1)
    params = random_like(abstract_params(config))
    x, t, _ = batch(config)
    out = forward(config)(params, x, t, TextCondition(np.ones((2, 1, 10), np.float32)))
    assert np.isfinite(out).all()


def test_a_fully_masked_caption_under_jit_contributes_nothing() -> None:
    """Its values do not matter and there is no NaN, neither in the output nor in the gradient; the
    cross-attention adds its output bias alone."""
    config = tiny(depth=1)
    params = random_like(abstract_params(config))
    x, t, cond = batch(config)
    masked = dataclasses.replace(cond, mask=np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]))
    out = np.asarray(forward(config)(params, x, t, masked))
    other = dataclasses.replace(masked, tokens=cond.tokens.at[1].add(1.0))
    np.testing.assert_array_equal(forward(config)(params, x, t, other), out)
    cross = dict(params["blocks"]["cross_attn"])
    cross["v"] = jax.tree.map(np.zeros_like, cross["v"])
    silent = dict(params, blocks=dict(params["blocks"], cross_attn=cross))
    np.testing.assert_allclose(forward(config)(silent, x, t, cond)[1], out[1], rtol=0, atol=1e-6)

    def loss(p: Any, mask: Any) -> jax.Array:
        cond_of_mask = dataclasses.replace(cond, mask=mask)
        return jnp.sum(apply_fn(config)(p, x, t, cond_of_mask) ** 2)

    gradient = quick_jit(jax.grad(loss))(params, masked.mask)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="all-zero mask"):  # numbers, although inside jit
        jax.eval_shape(lambda p: loss(p, masked.mask), params)


def test_a_condition_is_a_pytree() -> None:
    full = TextCondition(TOKENS, np.ones((2, 5)), np.ones((2, 2)), np.ones((2, 1)))
    assert len(jax.tree.leaves(full)) == 4 and len(jax.tree.leaves(TextCondition(TOKENS))) == 1
    doubled = jax.jit(lambda c: jax.tree.map(lambda leaf: 2 * leaf, c))(full)
    assert isinstance(doubled, TextCondition) and doubled.mask.max() == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        full.mask = None  # type: ignore[misc]


# --- dropped captions ---


def test_drop_captions_replaces_tokens_and_keeps_the_mask() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, 5, 10)).astype(np.float16)
    mask = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    null = rng.standard_normal((5, 10)).astype(np.float32)
    drop = jnp.array([True, False, True])
    dropped = jax.jit(drop_captions)(TextCondition(tokens, mask), drop, null)
    assert dropped.tokens.dtype == np.float16
    np.testing.assert_array_equal(dropped.tokens[1], tokens[1])
    for row in (0, 2):
        np.testing.assert_array_equal(dropped.tokens[row], null.astype(np.float16))
    np.testing.assert_array_equal(dropped.mask, mask)


def test_drop_captions_refuses_other_lengths() -> None:
    cond = TextCondition(TOKENS)
    with pytest.raises(ValueError, match=r"null caption of shape \(4, 10\) .* = \[5, 10\]"):
        drop_captions(cond, jnp.array([True, False]), jnp.zeros((4, 10)))
    with pytest.raises(ValueError, match=r"drop of shape \(3,\) .* per caption, \[2\]"):
        drop_captions(cond, jnp.array([True] * 3), jnp.zeros((5, 10)))


def test_null_condition() -> None:
    config = tiny()
    params = random_like(abstract_params(config))
    _, _, cond = batch(config)
    model: PixArt = with_params(config, params)
    null = model.null_condition(cond)
    np.testing.assert_array_equal(null.tokens, np.stack([params["y_embedder"]["null_caption"]] * 2))
    np.testing.assert_array_equal(null.mask, cond.mask)
    without = nnx.eval_shape(lambda: PixArt(tiny(model_max_length=None), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="holds no null caption .* encode the empty prompt"):
        without.null_condition(cond)


# --- configurations ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixer": "linear", "qk_norm": True}, "qk_norm belongs to softmax attention"),
        (
            {"mixer": "linear", "kv_compress_config": KVCompressConfig("ave", 2, (1,))},
            "kv_compress_config belongs to softmax attention, but the mixer is 'linear'",
        ),
        (
            {"kv_compress_config": KVCompressConfig("ave", 2, (3,))},
            r"has layer 3; the layers of a model of depth 3 are 0\.\.2",
        ),
        ({"hidden_size": 16, "micro_condition": True}, "16 is not divisible by 3"),
        ({"cross_num_heads": 5}, "hidden_size 24 is not divisible by cross_num_heads 5"),
        ({"num_heads": 5}, "hidden_size 24 is not divisible by num_heads 5"),
        ({"model_max_length": 0}, "model_max_length is 0; it must be an integer of at least 1"),
        ({"pe_interpolation": 0.0}, "pe_interpolation is 0.0; it must be positive"),
        ({"input_size": (8, 8, 8)}, "input_size is .* a side or"),
        ({"input_size": 9}, "input_size 9 is not a multiple of patch_size 2"),
    ],
    ids=str,
)
def test_impossible_configurations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


def test_impossible_compression() -> None:
    with pytest.raises(ValueError, match=r"sampling 'average'; did you mean 'ave'.*uniform_every"):
        KVCompressConfig("average")
    with pytest.raises(ValueError, match="scale_factor is 0; it must be an integer of at least 1"):
        KVCompressConfig(scale_factor=0)
    with pytest.raises(ValueError, match="token grid 4x1 is smaller than the scale_factor 2"):
        config = tiny(kv_compress_config=KVCompressConfig("conv", 2, (1,)))
        trace(config, *batch(config, (8, 2)))


def test_compression_of_nothing_is_none() -> None:
    for nothing in (KVCompressConfig(), KVCompressConfig("conv", 1, (0, 1))):
        assert tiny(kv_compress_config=nothing) == tiny()
    assert KVCompressConfig("conv", 2, (2, 0, 2)).kv_compress_layer == (0, 2)


def test_configurations_survive_json() -> None:
    config = tiny(kv_compress_config=KVCompressConfig("ave", 2, (1,)), input_size=(8, 4))
    stored = architecture(config)
    assert stored["kv_compress_config"]["kv_compress_layer"] == [1]
    assert from_mapping(PixArtConfig, stored) == config


def test_heads_of_the_cross_attention() -> None:
    """As many as softmax heads; beside a linear mixer those of the published width, or as told."""
    assert tiny().cross_heads == 2
    assert PixArtConfig(mixer="linear", num_heads=2).cross_heads == 16
    linear = tiny(mixer="linear", num_heads=3)
    assert linear.cross_heads == 3
    told = tiny(mixer="linear", num_heads=3, cross_num_heads=4)
    assert told.cross_heads == 4
    params = random_like(abstract_params(told))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, abstract_params(linear))
    ours, other = (forward(c)(params, *batch(c)) for c in (told, linear))
    assert np.abs(ours - other).max() > 1e-3


def test_mixers_of_a_fixed_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="'focused' holds parameters for every token of one grid"):
        abstract_params(tiny(mixer="focused"))
    with pytest.raises(ValueError, match="unknown mixer 'softmx'; did you mean 'softmax'"):
        abstract_params(tiny(mixer="softmx"))
    with pytest.raises(ValueError, match=r"remat policy 'ful'; did you mean 'full'"):
        abstract_params(tiny(remat="ful"))
    with pytest.raises(ValueError, match="dtype 'float16'"):
        abstract_params(tiny(dtype="float16"))
