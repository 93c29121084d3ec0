"""PixArt as a network: analytic check values, initialisation, any size."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import (
    Params,
    abstract_params,
    count_params,
    init_params,
)
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.models.pixart.model import position_table
from support.attention_cases import sine_input, sine_weights
from support.golden_cases import relative_error
from support.pixart_cases import batch, forward, quick_jit, random_params, tiny

# --- the official network from analytic weights ---

SMALL = {"input_size": 8, "hidden_size": 48, "depth": 2, "num_heads": 4}
SMALL |= {"caption_channels": 20, "model_max_length": 6}
PLAIN = PixArtConfig(**SMALL, pe_interpolation=2.0)
RICH = PixArtConfig(
    **SMALL,
    pe_interpolation=2.0,
    qk_norm=True,
    micro_condition=True,
    kv_compress_config=KVCompressConfig("conv", 2, (1,)),
)
MASK = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])

# Configuration, tensors, mask, latent size -> first five, last three elements in NCHW order, sum,
# sum of squares.
ANALYTIC = {
    "mask": (
        (PLAIN, 46, MASK, (8, 8)),
        [1.714597, -0.947393, 2.23956, -1.793127, 2.404649],
        [-2.927387, 1.687229, -2.729962],
        -28.78474,
        2528.60484,
    ),
    "no mask": (
        (PLAIN, 46, None, (8, 8)),
        [1.714676, -0.947444, 2.239652, -1.793211, 2.404732],
        [-2.927398, 1.687234, -2.729973],
        -28.78602,
        2528.71689,
    ),
    "8 x 12": (
        (PLAIN, 46, MASK, (8, 12)),
        [2.027075, -2.274512, 1.796191, -2.540395, 1.385435],
        [0.284189, -0.762717, 0.703326],
        -10.42659,
        3096.73234,
    ),
    "compression, qk_norm, micro-conditions": (
        (RICH, 66, MASK, (8, 8)),
        [-1.080985, 0.57551, -1.092237, 1.037072, -0.687198],
        [0.206621, 1.687044, -0.663925],
        2.14948,
        2231.65868,
    ),
}


@functools.cache
def analytic_params(config: PixArtConfig) -> tuple[int, Params]:
    """Number of tensors of the official file, and the parameters of the fill rule."""
    shapes = {key: s.source_shape for key, s in slots(layouts_for(config)[0], config).items()}
    return len(shapes), import_params(sine_weights(shapes), config)[0]


@pytest.mark.parametrize("case", ANALYTIC)
def test_analytic_weights(case: str) -> None:
    (config, tensors, mask, (H, W)), first, last, total, squares = ANALYTIC[case]
    count, params = analytic_params(config)
    assert count == tensors
    x = sine_input((2, 4, H, W), 0.21).transpose(0, 2, 3, 1)
    sizes: tuple[Any, ...] = ()
    if config.micro_condition:
        sizes = (np.float32([[512, 768], [1024, 256]]), np.float32([[0.67], [4.0]]))
    cond = TextCondition(sine_input((2, 6, 20), 0.13), mask, *sizes)
    out = forward(config)(params, x, np.float32([3, 777.5]), cond)
    flat = np.asarray(out, np.float64).transpose(0, 3, 1, 2).ravel()
    np.testing.assert_allclose(flat[:5], first, rtol=0, atol=1e-4)
    np.testing.assert_allclose(flat[-3:], last, rtol=0, atol=1e-4)
    assert flat.sum() == pytest.approx(total, abs=1e-2)
    assert np.square(flat).sum() == pytest.approx(squares, abs=5e-2)


@pytest.mark.parametrize(
    ("size", "scale", "grid", "checks", "total"),
    [
        (
            64,
            1.0,
            (32, 32),
            {(1, 0): 0.841471, (-1, 0): -0.404038, (-1, 288): 0.914742},
            494676.299,
        ),
        (128, 2.0, (64, 64), {(1, 0): 0.479426}, 1974250.122),
        (128, 2.0, (48, 88), {(1, 0): 0.355675, (88, 576): 0.618370}, 2036073.827),
    ],
)
def test_position_table(
    size: int,
    scale: float,
    grid: tuple[int, int],
    checks: dict[tuple[int, int], float],
    total: float,
) -> None:
    config = PixArtConfig(input_size=size, pe_interpolation=scale)
    table = position_table(config, grid)
    assert table.dtype == np.float32 and table.shape == (grid[0] * grid[1], 1152)
    for place, value in checks.items():
        assert table[place] == pytest.approx(value, abs=1e-6)
    assert table.sum(dtype=np.float64) == pytest.approx(total, abs=1e-2)
    assert position_table(config).shape[0] == (size // 2) ** 2


def test_positions_of_a_rectangular_nominal_size() -> None:
    """Each axis is scaled to its own nominal side: the nominal grid stands at whole positions."""
    wide = tiny(input_size=(8, 16), pe_interpolation=2.0)
    square = tiny(input_size=16, pe_interpolation=2.0)
    table = position_table(square).reshape(8, 8, -1)
    np.testing.assert_array_equal(position_table(wide).reshape(4, 8, -1), table[:4])


# --- initialisation ---


def test_published_sizes() -> None:
    """PixArt-Sigma-XL/2 and LiT-0.6B: all that is trained, so without the stored null caption."""
    null_caption = 300 * 4096
    sigma = count_params(abstract_params(PixArtConfig()))
    assert sigma - null_caption == 610_856_096
    lit = PixArtConfig(mixer="linear", num_heads=2)
    assert lit.cross_heads == 16
    assert count_params(abstract_params(lit)) - null_caption == 611_275_424
    without = PixArtConfig(model_max_length=None)
    assert count_params(abstract_params(without)) == 610_856_096


INITIAL = tiny(
    hidden_size=48,
    caption_channels=40,
    model_max_length=20,
    micro_condition=True,
    qk_norm=True,
    kv_compress_config=KVCompressConfig("conv", 2, (0, 2)),
)


@functools.cache
def initial(config: PixArtConfig) -> Params:
    return quick_jit(lambda key: init_params(config, key))(jax.random.key(0))


def test_output_is_zero_at_initialisation() -> None:
    assert not np.any(forward(INITIAL)(initial(INITIAL), *batch(INITIAL)))


def test_initial_values() -> None:
    """The official recipe: Xavier with the fans of the fused matrices, N(0, 0.02) embedders, tables
    N(0, 1/width), zero outputs, an averaging filter, and torch's default bias of the patches."""
    D, params = 48, initial(INITIAL)
    blocks = params["blocks"]
    xavier = [(blocks["attn"][name], D, 3 * D) for name in "qkv"]
    xavier += [(blocks["cross_attn"][name], D, 2 * D) for name in "kv"]
    xavier += [(blocks["attn"]["out"], D, D), (blocks["cross_attn"]["q"], D, D)]
    xavier += [(blocks["mlp"]["fc1"], D, 4 * D), (blocks["mlp"]["fc2"], 4 * D, D)]
    xavier += [(params["x_embedder"], 12, D)]
    for leaf, fan_in, fan_out in xavier:
        bound, peak = np.sqrt(6 / (fan_in + fan_out)), np.abs(leaf["kernel"]).max()
        assert 0.97 * bound < peak <= bound
    embedders = ("t_embedder", "y_embedder", "csize_embedder", "ar_embedder")
    normal = [params[name][fc]["kernel"] for name in embedders for fc in ("fc1", "fc2")]
    for kernel in (*normal, params["t_block"]["kernel"]):
        assert np.std(kernel) == pytest.approx(0.02, rel=0.15)
    tables = [blocks["scale_shift_table"], params["final_layer"]["scale_shift_table"]]
    for table, width in [(t, D) for t in tables] + [(params["y_embedder"]["null_caption"], 40)]:
        assert np.std(table) == pytest.approx(width**-0.5, rel=0.25)
    for closed in (blocks["cross_attn"]["out"], params["final_layer"]["linear"]):
        assert not any(np.any(leaf) for leaf in closed.values())
    assert set(np.unique(params["kv_compress"]["conv"]["kernel"])) == {0.25}
    assert params["kv_compress"]["conv"]["kernel"].shape == (2, 2, 2, D)
    for path, leaf in jax.tree.leaves_with_path(params):
        name = "/".join(key.key for key in path)
        if name == "x_embedder/bias":  # patches of 2 x 2 x 3
            assert 0.8 / np.sqrt(12) < np.abs(leaf).max() <= 1 / np.sqrt(12)
            assert np.abs(np.mean(leaf)) < 0.1
        elif name.endswith("bias"):
            assert not np.any(leaf), name
        elif name.endswith("scale"):
            assert np.all(leaf == 1), name
    assert not np.array_equal(*blocks["attn"]["q"]["kernel"][:2]), "blocks must not be copies"


# --- what the network computes ---


@pytest.mark.parametrize("fields", [{}, {"mixer": "linear"}], ids=["softmax", "linear"])
def test_any_height_and_width(fields: dict[str, Any]) -> None:
    """With closed gates a pixel moves its own patch and no other, wherever it lies."""
    config = tiny(**fields)
    params, size = dict(random_params(config)), (6, 10)
    x, t, cond = batch(config, size)
    out = forward(config)(params, x, t, cond)
    assert out.shape == (2, *size, 6) and out.dtype == jnp.float32 and np.isfinite(out).all()
    closed = dict(params["blocks"], scale_shift_table=np.zeros((3, 6, 24), np.float32))
    params |= {"t_block": jax.tree.map(np.zeros_like, params["t_block"]), "blocks": closed}
    row, column = 3, 8
    images = jnp.concatenate([x[:1], x[:1].at[:, row, column].add(1.0)])
    same = jax.tree.map(lambda leaf: np.asarray(leaf)[[0, 0]], cond)
    out = np.asarray(forward(config)(params, images, t[jnp.array([0, 0])], same))
    touched = np.argwhere(np.abs(out[1] - out[0]).max(axis=-1) > 1e-6)
    assert touched.tolist() == [[2 + i, 8 + j] for i in (0, 1) for j in (0, 1)]


def test_masked_tokens_and_other_captions_do_not_matter() -> None:
    config = tiny()
    params, f = random_params(config), forward(config)
    x, t, cond = batch(config)
    out = f(params, x, t, cond)
    hidden = jnp.where(jnp.asarray(cond.mask)[..., None] == 1, cond.tokens, 1e3)
    masked = dataclasses.replace(cond, tokens=hidden)
    np.testing.assert_array_equal(f(params, x, t, masked), out)
    # The second caption and its mask change, the first image does not notice.
    other = TextCondition(
        cond.tokens.at[1].multiply(-1), np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 0]])
    )
    changed = np.asarray(f(params, x, t, other))
    np.testing.assert_array_equal(changed[0], out[0])
    assert relative_error(changed[1], out[1]) > 1e-3


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_masks_of_any_type(dtype: Any) -> None:
    config = tiny()
    x, t, cond = batch(config)
    out = forward(config)(random_params(config), x, t, cond)
    typed = dataclasses.replace(cond, mask=np.asarray(cond.mask, dtype))
    np.testing.assert_array_equal(forward(config)(random_params(config), x, t, typed), out)


def test_conditions_change_the_output() -> None:
    config = tiny(micro_condition=True)
    params, f = random_params(config), forward(config)
    x, t, cond = batch(config)
    out = f(params, x, t, cond)
    np.testing.assert_array_equal(f(params, x, t.astype(jnp.float32), cond), out)
    others = [
        (t + 50, cond),
        (t, dataclasses.replace(cond, tokens=cond.tokens + 0.1)),
        (t, dataclasses.replace(cond, img_hw=cond.img_hw[:, ::-1])),
        (t, dataclasses.replace(cond, aspect_ratio=cond.aspect_ratio + 0.5)),
    ]
    for time, condition in others:
        assert relative_error(f(params, x, time, condition), out) > 1e-3


def test_the_null_caption_is_not_read() -> None:
    config = tiny()
    params = dict(random_params(config))
    out = forward(config)(params, *batch(config))
    params["y_embedder"] = dict(params["y_embedder"], null_caption=np.full((5, 10), 9, np.float32))
    np.testing.assert_array_equal(forward(config)(params, *batch(config)), out)
