"""Linear attention of LiT: the golden cases of Algorithm 1, its definition, its properties."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.attention import make_mixer
from lit_jax.models.attention.linear import (
    EPS,
    depthwise_conv,
    feature_map,
    linear_attention,
    linear_attention_explicit,
)
from support.attention_cases import (
    assert_golden,
    attention_params,
    golden_cases,
    mixer_config,
    mixer_fn,
    new_params,
    sine_input,
    sine_weights,
    value_and_gradients,
)
from support.golden_cases import relative_error


@pytest.fixture
def rng() -> np.random.Generator:
    """Other numbers in every run; the seed is printed, and shown when the test fails."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("folder", "case"), golden_cases("lit_"))
def test_golden(folder: Path, case: str) -> None:
    """Output and gradients of Algorithm 1."""
    assert_golden(folder, case, "linear")


# Attention alone from analytic weights: first five, last three elements, sum, sum of squares.
ANALYTIC = {
    (4, 4): (
        [-0.178313, -0.304442, -0.191967, 0.032874, 0.135835],
        [0.222278, -0.02045, -0.1637],
        -7.45474,
        49.81529,
    ),
    (3, 5): (
        [-0.171399, -0.302962, -0.19751, 0.026262, 0.135257],
        [0.279521, 0.037934, -0.166894],
        -6.95960,
        46.44935,
    ),
}


@pytest.mark.parametrize("grid", ANALYTIC)
def test_analytic_weights(grid: tuple[int, int]) -> None:
    shapes = {"q.weight": (48, 48), "kv.weight": (96, 48), "proj.weight": (48, 48)}
    shapes |= {"q.bias": (48,), "kv.bias": (96,), "proj.bias": (48,)}
    shapes |= {"dwc.weight": (24, 1, 5, 5), "dwc.bias": (24,)}
    config = mixer_config("linear", grid, hidden_size=48, num_heads=2)
    params = attention_params(sine_weights(shapes))
    x = sine_input((2, grid[0] * grid[1], 48), 0.21)
    out = np.asarray(jax.jit(mixer_fn(config))(params, x), np.float64).ravel()
    first, last, total, squares = ANALYTIC[grid]
    np.testing.assert_allclose(out[:5], first, rtol=0, atol=1e-4)
    np.testing.assert_allclose(out[-3:], last, rtol=0, atol=1e-4)
    assert out.sum() == pytest.approx(total, abs=1e-2)
    assert np.square(out).sum() == pytest.approx(squares, abs=1e-2)


@pytest.mark.parametrize("draw", range(3))
def test_equals_its_n_by_n_form(draw: int, rng: np.random.Generator) -> None:
    """Any shape, any scale of the features, dead rows included."""
    B, H, d = rng.integers(1, 4), rng.integers(1, 5), rng.integers(1, 33)
    shape = (B, rng.integers(1, 200), H, d)
    scale = 10.0 ** rng.uniform(-2, 3)
    q, k = (feature_map(jnp.asarray(scale * rng.normal(size=shape), "f4"), "relu") for _ in "qk")
    q = q.at[:, 0].set(EPS)  # a token without any active unit
    v = jnp.asarray(rng.normal(size=shape), "f4")
    fast, explicit = linear_attention(q, k, v), linear_attention_explicit(q, k, v)
    print(shape, scale)
    assert fast.dtype == explicit.dtype == jnp.float32
    assert relative_error(fast, explicit) < 1e-5


def test_weights_are_a_convex_combination(rng: np.random.Generator) -> None:
    """With features of magnitude one, each output is a weighted mean of v: 1 where v is 1."""
    q, k = (jnp.asarray(rng.uniform(size=(2, 300, 2, 8)), "f4") for _ in "qk")
    out = linear_attention(q, k, jnp.ones((2, 300, 2, 8)))
    np.testing.assert_allclose(out, 1.0, rtol=0, atol=1e-5)


def test_epsilon_follows_the_mean() -> None:
    """Algorithm 1 adds 1e-6 to a mean, so the size of the image does not change the output."""
    q = k = v = jnp.full((1, 1, 1, 1), 1e-3)
    expected = 1e-3 * 1e-6 / (1e-6 + 1e-6)
    np.testing.assert_allclose(linear_attention(q, k, v), expected, rtol=1e-5)
    q, k, v = (jnp.tile(a, (1, 500, 1, 1)) for a in (q, k, v))
    np.testing.assert_allclose(linear_attention(q, k, v), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel_fn", "expected"),
    [("relu", [0.0, 0.0, 1.0]), ("gelu", [-0.15865526, 0.0, 0.84134474])],
)
def test_feature_map(kernel_fn: str, expected: list[float]) -> None:
    """phi(x) + 1e-6, with the exact GELU (its tanh form gives 0.8411920 at 1)."""
    value = feature_map(jnp.array([-1.0, 0.0, 1.0]), kernel_fn)
    np.testing.assert_allclose(value, np.array(expected) + 1e-6, rtol=1e-6, atol=1e-8)


def test_unknown_kernel_function() -> None:
    with pytest.raises(ValueError, match=r"kernel_fn 'rleu'; did you mean 'relu'.*gelu, relu"):
        mixer_config("linear", (4, 4), hidden_size=8, num_heads=2, kernel_fn="rleu")


def test_unknown_mixer() -> None:
    config = mixer_config("liner", (4, 4), hidden_size=8, num_heads=2)
    with pytest.raises(ValueError, match=r"mixer 'liner'; did you mean 'linear'.*softmax"):
        make_mixer(config, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel_size", [None, 3])
def test_permutation_equivariance(kernel_size: int | None, rng: np.random.Generator) -> None:
    """Without the convolution the tokens are a set; with it they are not."""
    config = mixer_config("linear", (5, 7), hidden_size=16, num_heads=2, kernel_size=kernel_size)
    params, f = new_params(config), jax.jit(mixer_fn(config))
    x, order = rng.normal(size=(2, 35, 16)).astype("f4"), rng.permutation(35)
    error = relative_error(f(params, x[:, order]), np.asarray(f(params, x))[:, order])
    assert error < 1e-5 if kernel_size is None else error > 1e-2


def test_gradient_equals_that_of_the_n_by_n_form(rng: np.random.Generator) -> None:
    shape = (2, 50, 3, 8)
    q, k = (feature_map(jnp.asarray(rng.normal(size=shape), "f4"), "relu") for _ in "qk")
    v, R = (jnp.asarray(rng.normal(size=shape), "f4") for _ in "vR")
    gradients = [
        jax.jit(jax.grad(lambda *qkv, f=f: jnp.sum(f(*qkv) * R), (0, 1, 2)))(q, k, v)
        for f in (linear_attention, linear_attention_explicit)
    ]
    for fast, explicit in zip(*gradients, strict=True):
        assert relative_error(fast, explicit) < 5e-5


def grouped_conv(
    v: jax.Array, kernel: jax.Array, bias: jax.Array, grid: tuple[int, int]
) -> jax.Array:
    """The same convolution by jax.lax, heads as batch, one group per channel."""
    B, N, H, d = v.shape
    images = v.transpose(0, 2, 1, 3).reshape(B * H, *grid, d)
    out = jax.lax.conv_general_dilated(
        images,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=d,
        precision="highest",
    )
    return (out + bias).reshape(B, H, N, d).transpose(0, 2, 1, 3)


@pytest.mark.parametrize(("K", "grid"), [(5, (3, 7)), (3, (6, 4))])
def test_depthwise_conv(K: int, grid: tuple[int, int], rng: np.random.Generator) -> None:
    """Values and gradients of the grouped convolution, on grids smaller than the kernel, too."""
    shape = (2, grid[0] * grid[1], 3, 4)
    v, R = (jnp.asarray(rng.normal(size=shape), "f4") for _ in "vR")
    kernel, bias = (jnp.asarray(rng.normal(size=s), "f4") for s in ((K, K, 4), (4,)))

    def outputs(conv):
        def loss(*a):
            out = conv(*a, grid)
            return jnp.sum(out * R), out

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (_, out), gradients = compiled(v, kernel, bias)
        return out, *gradients

    for ours, reference in zip(outputs(depthwise_conv), outputs(grouped_conv), strict=True):
        assert relative_error(ours, reference) < 1e-5


def test_filters_are_shared_by_all_heads(rng: np.random.Generator) -> None:
    """The filters have d channels, and exchanging the heads of v exchanges those of the output."""
    config = mixer_config("linear", (4, 5), hidden_size=24, num_heads=3, kernel_size=3)
    dwc = new_params(config)["dwc"]
    assert dwc["kernel"].shape == (3, 3, 8) and dwc["bias"].shape == (8,)
    v = rng.normal(size=(2, 20, 3, 8)).astype("f4")
    conv = jax.jit(lambda v: depthwise_conv(v, dwc["kernel"], dwc["bias"], (4, 5)))
    np.testing.assert_array_equal(conv(v[:, :, ::-1]), conv(v)[:, :, ::-1])


def test_grid_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"grid 3x4 has 12 tokens, but the input has 20"):
        depthwise_conv(jnp.ones((1, 20, 1, 2)), jnp.ones((3, 3, 2)), jnp.zeros(2), (3, 4))


def test_bfloat16_with_large_activations(rng: np.random.Generator) -> None:
    """Activations of magnitude 1e3 over 4,096 tokens: finite, within 2% of float32."""
    fields = {"hidden_size": 32, "num_heads": 2, "kernel_size": 3}
    single = mixer_config("linear", (64, 64), **fields)
    half = mixer_config("linear", (64, 64), dtype="bfloat16", **fields)
    params = new_params(single)
    x = jnp.asarray(1e3 * rng.normal(size=(1, 4096, 32)), jnp.bfloat16)
    expected = jax.jit(mixer_fn(single))(params, x.astype(jnp.float32))
    out = jax.jit(mixer_fn(half))(params, x)
    assert expected.dtype == jnp.float32 and out.dtype == jnp.bfloat16
    out, expected = np.asarray(out, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(out).all()
    assert relative_error(out, expected) < 0.02
    assert np.sqrt(np.square(out - expected).sum() / np.square(expected).sum()) < 0.02


def test_core_is_a_float32_island(rng: np.random.Generator) -> None:
    """Half-precision features and values lose nothing beyond their own rounding."""
    q, k, v = (jnp.asarray(rng.uniform(0, 1e3, (1, 4096, 1, 4)), jnp.bfloat16) for _ in "qkv")
    expected = linear_attention_explicit(*(a[:, :512].astype("f4") for a in (q, k, v)))
    out = linear_attention(*(a[:, :512] for a in (q, k, v)))
    assert out.dtype == jnp.float32 and relative_error(out, expected) < 1e-5
    kernel, bias = jnp.ones((3, 3, 4)), jnp.zeros(4)
    conv = jax.jit(lambda v: depthwise_conv(v, kernel, bias, (64, 64)))
    assert conv(v).dtype == jnp.float32
    assert relative_error(conv(v), conv(v.astype("f4"))) < 1e-6


def test_dead_rows_keep_finite_gradients() -> None:
    """Keys and queries without any active unit: 0 / 0 is avoided forwards and backwards."""
    config = mixer_config("linear", (4, 4), hidden_size=8, num_heads=2, kernel_size=None)
    params = new_params(config)
    for name in "qk":
        params[name]["bias"] = jnp.full((8,), -1e3)
    x = jnp.asarray(sine_input((1, 16, 8), 0.3))
    out, gradients = value_and_gradients(config)(params, x, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))


@pytest.mark.parametrize(("mixer", "quadratic"), [("linear", False), ("softmax", True)])
def test_no_n_by_n_buffer(mixer: str, quadratic: bool) -> None:
    """The compiled gradient of linear attention holds no array with two axes of N tokens."""
    config = mixer_config(mixer, (13, 17), hidden_size=8, num_heads=2, kernel_size=3)
    x = jnp.ones((1, 221, 8))
    compiled = value_and_gradients(config).lower(new_params(config), x, x).compile()
    assert bool(re.search(r"\b221,221\b", compiled.as_text())) == quadratic
