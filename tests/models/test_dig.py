"""The whole DiG: golden outputs, analytic weights, sizes, initialisation, ways of computing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.functional import (
    Params,
    abstract_params,
    apply_fn,
    count_params,
    create_model,
    init_params,
    with_params,
)
from lit_jax.models.layers import layer_norm
from lit_jax.models.registry import model_config
from support.attention_cases import random_like, sine_input, sine_weights
from support.golden_cases import (
    golden_sources,
    load_arrays,
    load_meta,
    load_state_dict,
    nhwc,
    relative_error,
)

# The golden gradients themselves are 1.7e-4 away from those of float64 (ours 5e-5): the norm of a
# head with a small output magnifies what single precision loses.
FORWARD, GRADIENT = 1e-5, 3e-4

CASES = ("dig_dwconv_qdir", "dig_dwconv_qdir_skip")
SOURCES = [
    pytest.param(case, *source.values, id=f"{case}-{source.id}")
    for case in CASES
    for source in golden_sources(f"{case}.npz")
]

TINY = {"input_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 4, "num_heads": 2}
TINY |= {"num_classes": 5}


def tiny(**fields: Any) -> DiGConfig:
    return model_config("DiG", **(TINY | fields))


def batch(config: DiGConfig) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x = sine_input((2, *config.image_size, config.in_channels), 0.3)
    labels = jnp.array([1, config.null_label or 0]) if config.num_classes else None
    return jnp.asarray(x), jnp.array([3, 777]), labels


@functools.cache
def forward(config: DiGConfig) -> Callable[..., jax.Array]:
    return jax.jit(apply_fn(config))


# --- golden ---


@functools.cache
def golden_program(config: DiGConfig) -> Callable[..., Any]:
    """Output, blocks, and the gradients of sum(out * R) for parameters and input."""

    def loss(params: Params, x: jax.Array, t: jax.Array, y: jax.Array, R: jax.Array) -> Any:
        out, kept = with_params(config, params).with_activations(x, t, y)
        return jnp.sum(out * R), (out, kept["blocks"])

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def in_scan_order(x_BxNxD: np.ndarray, layer: int, grid: tuple[int, int]) -> np.ndarray:
    """Tokens by rows as the layer sees them."""
    B, N, D = x_BxNxD.shape
    if layer % 4 >= 2:
        x_BxNxD = x_BxNxD.reshape(B, *grid, D).swapaxes(1, 2).reshape(B, N, D)
    return x_BxNxD[:, ::-1] if layer % 2 else x_BxNxD


@pytest.mark.parametrize(("case", "folder"), SOURCES)
def test_golden(case: str, folder: Path) -> None:
    """Output, blocks before they are turned round, and gradients of the official network."""
    config = model_config("DiG", **load_meta(folder, case)["config"])
    params, _ = import_params(load_state_dict(folder, case), config)
    arrays = load_arrays(folder, case)
    inputs = (nhwc(arrays["x"]), arrays["t"], arrays["y"], nhwc(arrays["grad_R"]))
    (_, (out, blocks)), (for_params, for_x) = golden_program(config)(params, *inputs)
    assert relative_error(out, nhwc(arrays["out"])) < FORWARD
    assert relative_error(for_x, nhwc(arrays["grad_x"])) < GRADIENT
    middle = [name for name in arrays if name.startswith("mid_")]
    assert len(middle) == (4 if case == "dig_dwconv_qdir" else 0)
    for name in middle:
        layer = int(name.removeprefix("mid_block").split("_")[0])
        ours = in_scan_order(np.asarray(blocks[layer]), layer, config.grid)
        assert relative_error(ours, arrays[name]) < FORWARD
    gradients = export_params(for_params, config, "dig")
    names = [name for name in arrays if name.startswith("grad_param:")]
    assert len(names) == 4
    for name in names:
        key = name.removeprefix("grad_param:")
        assert relative_error(gradients[key], arrays[name]) < GRADIENT, key


# --- the official network from analytic weights, 8 x 8 x 4 latents, 10 classes ---

# First five, last three elements in NCHW order, sum, sum of squares.
ANALYTIC = {
    False: (
        [2.136504, -0.264012, 2.018314, -0.09407, 1.974814],
        [0.08314, 1.969957, 0.042497],
        176.70122,
        4442.15519,
    ),
    True: (
        [-2.839026, 3.069999, -2.787807, 3.01186, -2.743074],
        [3.0709, -2.936435, 3.024655],
        12.39557,
        4965.30436,
    ),
}


@pytest.mark.parametrize("skip", [False, True])
def test_analytic_weights(skip: bool) -> None:
    config = model_config(
        "DiG", input_size=8, hidden_size=48, depth=4, num_heads=4, num_classes=10, if_skip=skip
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), abstract_params(config))
    shapes = {key: value.shape for key, value in export_params(zeros, config, "dig").items()}
    del shapes["pos_embed"]
    assert len(shapes) == (73 if skip else 71)
    params, _ = import_params(sine_weights(shapes), config)
    x = sine_input((2, 4, 8, 8), 0.21).transpose(0, 2, 3, 1)
    out = forward(config)(params, x, jnp.array([3, 777]), jnp.array([1, 10]))
    first, last, total, squares = ANALYTIC[skip]
    flat = np.asarray(out, np.float64).transpose(0, 3, 1, 2).ravel()
    np.testing.assert_allclose(flat[:5], first, rtol=0, atol=1e-4)
    np.testing.assert_allclose(flat[-3:], last, rtol=0, atol=1e-4)
    assert flat.sum() == pytest.approx(total, abs=1e-2)
    assert np.square(flat).sum() == pytest.approx(squares, abs=5e-2)


# --- sizes, refusals, initialisation ---


@pytest.mark.parametrize(
    ("name", "skip", "count"),
    [
        ("DiG-S/2", False, 33_081_632),
        ("DiG-B/2", False, 130_748_192),
        ("DiG-L/2", False, 465_022_496),
        ("DiG-XL/2", False, 675_953_952),
        ("DiG-S/2", True, 34_558_112),
        ("DiG-XL/2", True, 710_473_632),
    ],
)
def test_parameter_counts(name: str, skip: bool, count: int) -> None:
    """The published ones, which include the position table."""
    config = model_config(name, skip=skip)
    ours = count_params(abstract_params(config))
    assert ours + config.num_tokens * config.hidden_size == count


def test_official_argument_names() -> None:
    config = model_config(
        "DiG", if_skip=True, if_zero_init_skip=True, if_dw_conv=False, if_quad_dir=False
    )
    assert config.skip and config.skip_zero and not config.dw_conv and not config.quad_dir


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bid_mode": "layers"}, r"unknown bid_mode 'layers'; did you mean 'layer'\?"),
        ({"if_in_block_conv": True}, "unknown argument of DiG 'if_in_block_conv'"),
        ({"skip": True, "depth": 5}, "depth is 5; skip joins the layers of two halves"),
        ({"expand_k": 0.3}, "hidden_size 16 x expand_k 0.3 is 4"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4; it must be odd"),
        ({"remat": "ful"}, "unknown remat policy 'ful'; did you mean 'full'"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    if "expand_k" in fields:
        fields = fields | {"num_heads": 8}
    with pytest.raises(ValueError, match=message):
        create_model("DiG", **(TINY | fields))


def test_initial_values() -> None:
    """Zero output, identity convolutions, skips closed by `skip_zero`."""
    config = tiny(skip=True, skip_zero=True)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    assert not np.any(forward(config)(params, *batch(config)))
    kernel = np.zeros((4, 3, 3, 16))
    kernel[:, 1, 1] = 1
    np.testing.assert_array_equal(params["blocks"]["dwc"]["kernel"], kernel)
    np.testing.assert_array_equal(params["skip"]["kernel"][0], np.eye(32, 16))
    for leaf in (params["blocks"]["dwc"]["bias"], params["skip"]["bias"]):
        assert not np.any(leaf)
    gate = params["blocks"]["mlp"]["gate"]["kernel"]
    bound = np.sqrt(6 / (16 + 512))
    assert gate.shape == (4, 16, 512) and 0.97 * bound < np.abs(gate).max() <= bound


def test_closed_skips_change_nothing() -> None:
    config = tiny(skip=True, skip_zero=True)
    params = random_like(abstract_params(config))
    params["skip"] = {"kernel": np.eye(32, 16)[None], "bias": np.zeros((1, 16))}
    plain = {name: leaf for name, leaf in params.items() if name != "skip"}
    expected = forward(tiny())(plain, *batch(config))
    assert relative_error(forward(config)(params, *batch(config)), expected) < 1e-6


# --- how it is computed does not change what is computed ---


@functools.cache
def loss_and_gradient(config: DiGConfig) -> Callable[..., Any]:
    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        out = apply_fn(config)(params, *batch(config))
        return jnp.sum(jnp.square(out)), out

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.slow
def test_unrolling_and_remat_keep_output_and_gradient() -> None:
    """Of the U-shape, 6 layers in parts of two."""
    plain = tiny(depth=6, skip=True, input_size=2, patch_size=1)
    params = random_like(abstract_params(plain))
    expected_gradient, expected = loss_and_gradient(plain)(params)
    changed = dataclasses.replace(plain, scan_unroll=2, remat="full")
    gradient, out = loss_and_gradient(changed)(params)
    assert relative_error(out, expected) < 2e-6
    for ours, reference in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        assert np.any(reference), "a parameter without influence"
        assert relative_error(ours, reference) < 1e-5


def program(**fields: Any) -> str:
    config = tiny(depth=8, **fields)
    return str(jax.make_jaxpr(apply_fn(config))(abstract_params(config), *batch(config)))


def test_remat_and_unrolling_reach_the_program() -> None:
    """One mark in the loop over layers, besides that of gated attention."""
    plain, full, unrolled = program(), program(remat="full"), program(scan_unroll=2)
    marks = [text.count("remat2[") + text.count("checkpoint[") for text in (plain, full)]
    assert marks[1] - marks[0] == 1
    assert "unroll=2" in unrolled and "unroll=2" not in plain


def test_bfloat16_model_returns_float32() -> None:
    config = tiny(dtype="bfloat16")
    params = random_like(abstract_params(config))
    out, expected = (forward(c)(params, *batch(c)) for c in (config, tiny()))
    assert out.dtype == jnp.float32
    assert 1e-5 < relative_error(out, expected) < 0.06


def test_what_is_kept_of_the_layers_has_its_tokens_by_rows() -> None:
    """With closed gates and identity convolutions all blocks hold the embedding as it came in, and
    each attends to it in its own order."""
    config = tiny(depth=6, input_size=(4, 6))
    params = random_like(abstract_params(config))
    params["blocks"]["adaln"] = jax.tree.map(np.zeros_like, params["blocks"]["adaln"])
    kernel = np.zeros((6, 3, 3, 16), "f4")
    kernel[:, 1, 1] = 1
    params["blocks"]["dwc"] = {"kernel": kernel, "bias": np.zeros((6, 16), "f4")}

    @jax.jit
    def call(params: Params) -> Any:
        model = with_params(config, params)
        _, kept = model.with_activations(*batch(config))
        _, heads = model.with_attention(*batch(config))
        graphdef, stacked = nnx.split(model.blocks)
        expected = []
        for layer in range(config.depth):
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=layer: leaf[i], stacked))
            x = in_scan_order(layer_norm(kept["embedding"]), layer, config.grid)
            expected.append(block.attn.heads(x, config.grid))
        return kept, heads, expected

    kept, heads, expected = call(params)
    assert kept["blocks"].shape == heads.shape == (6, 2, 6, 16)
    for layer in range(config.depth):
        np.testing.assert_array_equal(kept["blocks"][layer], kept["embedding"])
        ours = in_scan_order(heads[layer], layer, config.grid)
        assert relative_error(ours, expected[layer]) < 1e-5
