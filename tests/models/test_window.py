"""Attention within circular windows: golden cases of CLEAR, counts, the tiled form against the
masked one, and the module."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.attention.window import (
    Pool,
    Tiling,
    circle_mask,
    window_attention,
    window_attention_explicit,
)
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import abstract_params, apply_fn
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import model_config
from support.attention_cases import (
    golden_sources,
    load_arrays,
    load_meta,
    mixer_config,
    mixer_fn,
    new_params,
    of_case,
)
from support.golden_cases import relative_error

# --- golden ---


def golden_cases(entry: str) -> list[Any]:
    """pytest parameters (folder, case) of the cases of `clear` that have an array of this name."""
    return [
        pytest.param(folder, case, id=f"{case}-{source.id}")
        for source in golden_sources("clear.npz")
        for folder in source.values
        for case in load_meta(folder, "clear")["cases"]
        if f"{case}/{entry}" in golden_arrays(folder)
    ]


@functools.cache
def golden_arrays(folder: Path) -> dict[str, np.ndarray]:
    return load_arrays(folder, "clear")


def pool(weight_fxf: np.ndarray) -> Pool:
    pooling = Pool(len(weight_fxf))
    pooling.kernel[...] = jnp.asarray(weight_fxf)
    return pooling


def pooled(arrays: dict[str, np.ndarray], grid: Any, k: Any, v: Any) -> Any:
    if "spatial_weight" not in arrays:
        return None
    pooling = pool(arrays["spatial_weight"])
    return pooling(jnp.asarray(k), grid), pooling(jnp.asarray(v), grid)


@pytest.mark.parametrize(("folder", "case"), golden_cases("out"))
def test_golden_masks_and_outputs(folder: Path, case: str) -> None:
    """What image tokens see and attend to. Text tokens, which self-attention has none of here, are
    further keys for them, as pooled tokens are."""
    meta, arrays = load_meta(folder, "clear")["cases"][case], of_case(golden_arrays(folder), case)
    arrays = {name.removeprefix("/"): value for name, value in arrays.items()}
    grid, r, texts = tuple(meta["hw"]), meta["radius"], meta["text_length"]
    tokens = math.prod(grid)
    seen = arrays["mask"][texts:, texts:]
    assert np.array_equal(seen[:, :tokens], circle_mask(grid, r)) and seen[:, tokens:].all()
    assert arrays["mask"][texts:, :texts].all()
    assert meta["scale"] == pytest.approx(arrays["q"].shape[-1] ** -0.5)

    q, k, v = (arrays[name].swapaxes(1, 2) for name in "qkv")
    parts = [(k[:, :texts], v[:, :texts])] if texts else []
    if (far := pooled(arrays, grid, k[:, texts:], v[:, texts:])) is not None:
        parts.append(far)
    far = tuple(np.concatenate(a, axis=1) for a in zip(*parts, strict=True)) or None
    out = window_attention(q[:, texts:], k[:, texts:], v[:, texts:], grid, r, far)
    assert relative_error(out, arrays["out"].swapaxes(1, 2)[:, texts:]) < 1e-5


IMAGE_ONLY = [case for case in golden_cases("proc_out_prop0") if "text" not in str(case.id)]


@pytest.mark.parametrize(("folder", "case"), IMAGE_ONLY)
@pytest.mark.parametrize("proportional", [False, True])
def test_golden_processor(folder: Path, case: str, proportional: bool) -> None:
    """Projections, RMS norm of each head's queries and keys, pooling after the norm. The
    proportional scale sqrt(log_4608(keys) / d) is put into the queries."""
    meta, arrays = load_meta(folder, "clear")["cases"][case], of_case(golden_arrays(folder), case)
    arrays = {name.removeprefix("/"): value for name, value in arrays.items()}
    grid, weights = tuple(meta["hw"]), of_case(arrays, "proc_weight:")
    heads, d = meta["proc"]["heads"], meta["proc"]["head_dim"]
    hidden = arrays["proc_hidden"]

    def project(name: str) -> np.ndarray:
        x = hidden @ weights[f"to_{name}.weight"].T + weights[f"to_{name}.bias"]
        x = x.reshape(*hidden.shape[:2], heads, d)
        if name == "v":
            return x
        scale = weights[f"norm_{name}.weight"]
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    q, k, v = (project(name).astype("f4") for name in "qkv")
    if proportional:
        keys = math.prod(grid) * (10 if meta["down_factor"] else 1)
        q = q * np.float32(math.sqrt(math.log(keys, 64**2 + 512)))
    out = window_attention(q, k, v, grid, meta["radius"], pooled(arrays, grid, k, v))
    expected = arrays[f"proc_out_prop{int(proportional)}"]
    assert relative_error(out.reshape(hidden.shape), expected) < 1e-5


# --- counts ---


@pytest.mark.parametrize(
    ("grid", "r", "count"),
    [
        ((4, 4), 2, 100),
        ((4, 4), 3, 196),
        ((4, 6), 2, 160),
        ((8, 8), 4, 1836),
        ((16, 16), 8, 30756),
        ((32, 32), 8, 158372),
    ],
)
def test_counts_of_pairs(grid: tuple[int, int], r: int, count: int) -> None:
    """Within the border; the tiled form masks the same pairs."""
    assert circle_mask(grid, r).sum() == count
    tiling = Tiling.of(grid, r)
    tiles = sum(
        np.asarray(tiling.mask(jnp.asarray(j)))
        .reshape(tiling.S, tiling.t, tiling.u, -1)[:, :, : grid[1] - j * tiling.u]
        .sum()
        for j in range(tiling.T)
    )
    beyond = tiling.S * tiling.t - grid[0]
    assert beyond == 0 and tiles == count


@pytest.mark.parametrize(("r", "count"), [(2, 9), (3, 25), (4, 45), (8, 193), (16, 793)])
def test_counts_of_neighbours(r: int, count: int) -> None:
    """Of a token far from the border; the distance is strictly below the radius."""
    side = 2 * r + 1
    assert circle_mask((side, side), r)[side * side // 2].sum() == count


# --- the tiled form ---

FORMS = [
    # Strips and tiles that stick out; radius 1, which sees nothing but itself; halos over several
    # strips; a radius larger than the grid; a single row.
    pytest.param((33, 9), 3, 4, id="uneven"),
    pytest.param((11, 10), 1, 0, id="itself"),
    pytest.param((52, 19), 12, 0, id="wide-halo"),
    pytest.param((26, 3), 40, 5, id="everything"),
    pytest.param((1, 21), 5, 0, id="row"),
]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def with_gradients(form: Any, grid: tuple[int, int], r: int, inputs: Any, do: Any) -> Any:
    out, back = jax.vjp(lambda q, k, v, far: form(q, k, v, grid, r, far), *inputs)
    return out, back(do)


def draw_inputs(grid: tuple[int, int], M: int, dtype: str = "f4") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    shape = (2, math.prod(grid), 2, 4)
    q, k, v, do = (jnp.asarray(2 * rng.normal(size=shape), dtype) for _ in range(4))
    far = (jnp.asarray(rng.normal(size=(2, M, 2, 4)), dtype) for _ in range(2))
    return (q, k, v, tuple(far) if M else None), do


@pytest.mark.parametrize(("grid", "r", "M"), FORMS)
def test_equals_masked_softmax(grid: tuple[int, int], r: int, M: int) -> None:
    """Outputs, and gradients with respect to queries, keys, values and pooled tokens."""
    inputs, do = draw_inputs(grid, M)
    ours = with_gradients(window_attention, grid, r, inputs, do)
    explicit = with_gradients(window_attention_explicit, grid, r, inputs, do)
    assert jax.tree.structure(ours) == jax.tree.structure(explicit)
    for value, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(explicit), strict=True):
        # Queries that see one key have no gradient.
        assert np.abs(value - expected).max() <= 5e-6 * max(np.abs(expected).max(), 1.0)


def test_bfloat16_has_float32_logits() -> None:
    """Large logits, whose differences bfloat16 would lose; a tile that sticks out stays finite."""
    inputs, do = draw_inputs((19, 11), 0, "bfloat16")
    inputs = (inputs[0] * 20, *inputs[1:])
    out, gradients = with_gradients(window_attention, (19, 11), 3, inputs, do)
    assert out.dtype == jnp.bfloat16
    exact = window_attention_explicit(*inputs[:3], (19, 11), 3)
    assert relative_error(np.asarray(out, "f4"), exact) < 0.01
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("gradients", [False, True])
def test_memory_grows_with_the_tokens(gradients: bool) -> None:
    """Four times the tokens need about four times the memory, far from an N x N array."""

    def peak(side: int) -> float:
        x = jax.ShapeDtypeStruct((1, side * side, 1, 4), jnp.float32)

        def forward(q: Any, k: Any, v: Any) -> Any:
            return window_attention(q, k, v, (side, side), 4)

        fn = jax.grad(lambda *a: jnp.sum(forward(*a)), (0, 1, 2)) if gradients else forward
        memory = jax.jit(fn).lower(x, x, x).compile().memory_analysis()
        assert memory is not None
        return float(memory.temp_size_in_bytes)

    small, large = peak(32), peak(64)
    assert large < 5 * small and large < 0.1 * 4 * 64**4


def test_grid_of_other_tokens() -> None:
    inputs, _ = draw_inputs((3, 4), 0)
    with pytest.raises(ValueError, match="grid 3x5 has 15 tokens, but the input has 12"):
        window_attention(*inputs[:3], (3, 5), 2)


# --- the module ---


def test_module_is_masked_attention_between_the_projections() -> None:
    """By hand, with pooled tokens of the projected keys and values."""
    fields: dict[str, Any] = {"hidden_size": 8, "num_heads": 2, "window_size": 2}
    config = mixer_config("window", (4, 6), down_factor=2, **fields)
    params, x = new_params(config), np.random.default_rng(1).normal(size=(2, 24, 8)).astype("f4")
    assert params["pool"]["kernel"].shape == (2, 2)
    q, k, v = (
        (x @ params[name]["kernel"] + params[name]["bias"]).reshape(2, 24, 2, 4) for name in "qkv"
    )
    far = tuple(
        np.einsum("brpcshd,ps->brchd", a.reshape(2, 2, 2, 3, 2, 2, 4), params["pool"]["kernel"])
        for a in (k, v)
    )
    far = tuple(a.reshape(2, 6, 2, 4) for a in far)
    heads = np.asarray(window_attention_explicit(q, k, v, (4, 6), 2, far)).reshape(2, 24, 8)
    expected = heads @ params["out"]["kernel"] + params["out"]["bias"]
    assert relative_error(mixer_fn(config)(params, x), expected) < 1e-5


TINY: dict[str, Any] = {
    "hidden_size": 12,
    "depth": 1,
    "num_heads": 3,
    "patch_size": 1,
    "in_channels": 1,
}


def test_dit_with_a_window_over_the_grid_is_the_softmax_model() -> None:
    softmax = model_config("DiT", input_size=6, num_classes=3, **TINY)
    params = random_params(softmax)
    x, t, cond = np.ones((1, 6, 6, 1), "f4"), np.array([7.0], "f4"), np.array([1])
    x[0, :3] = -1
    expected = apply_fn(softmax)(params, x, t, cond)
    errors = {}
    for r in (2, 9):
        config = model_config("CLEAR", input_size=6, num_classes=3, window_size=r, **TINY)
        assert jax.tree.map(jnp.shape, abstract_params(config)) == jax.tree.map(jnp.shape, params)
        errors[r] = relative_error(apply_fn(config)(params, x, t, cond), expected)
    assert errors[9] < 2e-6 < 1e-3 < errors[2]


def random_params(config: Any) -> Any:
    rng = np.random.default_rng(3)
    shapes = abstract_params(config)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype("f4"), shapes)


def test_pixart_with_norms_on_any_grid() -> None:
    """A window over the grid is softmax attention, q and k norms included; pooled tokens need a
    grid that their factor divides."""
    fields: dict[str, Any] = {"input_size": 4, "caption_channels": 5, "model_max_length": 2}
    softmax = PixArtConfig(qk_norm=True, **fields, **TINY)
    params = random_params(softmax)
    cond = TextCondition(np.ones((1, 2, 5), "f4"), np.ones((1, 2), np.int32))
    x = np.random.default_rng(0).normal(size=(1, 6, 9, 1)).astype("f4")
    t = np.array([7.0], "f4")
    expected = apply_fn(softmax)(params, x, t, cond)
    windows = PixArtConfig(mixer="window", window_size=12, qk_norm=True, **fields, **TINY)
    assert relative_error(apply_fn(windows)(params, x, t, cond), expected) < 2e-6

    both = PixArtConfig(mixer="window", window_size=2, down_factor=2, **fields, **TINY)
    with pytest.raises(ValueError, match=r"token grid 6x9 .* down_factor 2 x 2; choose a factor"):
        apply_fn(both)(random_params(both), x, t, cond)


def test_dit_says_at_once_that_a_factor_does_not_fit() -> None:
    with pytest.raises(ValueError, match="token grid 6x6 does not divide .* down_factor 4"):
        model_config("CLEAR", input_size=6, num_classes=3, down_factor=4, **TINY)
