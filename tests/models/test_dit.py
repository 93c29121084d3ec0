"""The whole network: analytic check values, initialisation, ways of computing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.checkpoints.convert import import_params
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.dit.model import REMAT_POLICIES
from lit_jax.models.functional import (
    Params,
    abstract_params,
    apply_fn,
    create_model,
    init_params,
    with_params,
)
from lit_jax.models.layers import patchify, unpatchify
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.registry import model_config
from support.attention_cases import random_like, sine_input, sine_weights
from support.dit_cases import TINY, batch, forward, tiny
from support.golden_cases import relative_error

# --- the official network from analytic weights ---


def analytic_model(family: str) -> tuple[DiTConfig, Params]:
    """8 x 8 x 4 latents, patch 2, width 48, depth 2, 10 classes; weights in torch's layout."""
    D = 48
    dense = {"t_embedder.mlp.0": (D, 256), "t_embedder.mlp.2": (D, D)}
    dense |= {"final_layer.adaLN_modulation.1": (2 * D, D), "final_layer.linear": (32, D)}
    attention = {"qkv": (3 * D, D)} if family == "DiT" else {"q": (D, D), "kv": (2 * D, D)}
    for i in range(2):
        rows = {f"attn.{name}": shape for name, shape in attention.items()}
        rows |= {"attn.proj": (D, D), "mlp.fc1": (4 * D, D), "mlp.fc2": (D, 4 * D)}
        rows |= {"adaLN_modulation.1": (6 * D, D)}
        dense |= {f"blocks.{i}.{name}": shape for name, shape in rows.items()}
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (D, 4, 2, 2)}
    shapes |= {"x_embedder.proj.bias": (D,), "y_embedder.embedding_table.weight": (11, D)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    if family == "LiT":
        for i in range(2):
            shapes |= {f"blocks.{i}.attn.dwc.weight": (24, 1, 5, 5)}
            shapes |= {f"blocks.{i}.attn.dwc.bias": (24,)}
    assert len(shapes) == {"DiT": 31, "LiT": 39}[family]
    config = model_config(
        family,
        input_size=8,
        hidden_size=D,
        depth=2,
        num_heads=4 if family == "DiT" else 2,
        num_classes=10,
    )
    return config, import_params(sine_weights(shapes), config)[0]


# First five, last three elements in NCHW order, sum, sum of squares.
ANALYTIC = {
    "DiT": (
        [1.23696, 0.079884, 1.699426, -0.57872, 1.781659],
        [-1.556563, 0.035774, -1.165077],
        -9.06388,
        2617.83387,
    ),
    "DiT guided": (
        [1.222104, 0.100606, 1.706043, -0.575334, 1.800272],
        [-1.556563, 0.035774, -1.165077],
        -12.08327,
        5320.69229,
    ),
    "LiT": (
        [-1.107146, -0.192956, -1.822764, 0.459703, -2.139453],
        [2.205356, -0.666487, 1.755319],
        17.46548,
        2410.22533,
    ),
}


def check_analytic(case: str, out_BxHxWxC: np.ndarray) -> None:
    first, last, total, squares = ANALYTIC[case]
    flat = np.asarray(out_BxHxWxC, np.float64).transpose(0, 3, 1, 2).ravel()
    np.testing.assert_allclose(flat[:5], first, rtol=0, atol=1e-4)
    np.testing.assert_allclose(flat[-3:], last, rtol=0, atol=1e-4)
    assert flat.sum() == pytest.approx(total, abs=1e-2)
    assert np.square(flat).sum() == pytest.approx(squares, abs=5e-2)


@pytest.mark.parametrize("family", ["DiT", "LiT"])
def test_analytic_weights(family: str) -> None:
    config, params = analytic_model(family)
    x = sine_input((2, 4, 8, 8), 0.21).transpose(0, 2, 3, 1)
    out = forward(config)(params, x, jnp.array([3, 777]), jnp.array([1, 10]))
    check_analytic(family, np.asarray(out))
    if family == "LiT":
        return
    # Guidance 1.5 on three channels; both halves see the same images.
    t, y = jnp.array([3, 777, 3, 777]), jnp.array([1, 7, 10, 10])
    out = np.asarray(forward(config)(params, np.concatenate([x, x]), t, y))
    cond, null = np.split(out[..., :3], 2)
    guided = null + 1.5 * (cond - null)
    merged = np.concatenate([np.concatenate([guided, guided]), out[..., 3:]], axis=-1)
    check_analytic("DiT guided", merged)


# --- initialisation ---


@functools.cache
def initial(family: str) -> Params:
    return init_params(tiny(family), jax.random.key(0))


@pytest.mark.parametrize("family", ["DiT", "LiT"])
def test_output_is_zero_at_initialisation(family: str) -> None:
    config = tiny(family)
    assert not np.any(forward(config)(initial(family), *batch(config)))


@pytest.mark.parametrize("family", ["DiT", "LiT"])
def test_initial_values(family: str) -> None:
    """The official recipe: Xavier, zero biases and gates, N(0, 0.02) embeddings."""
    D, params = 16, initial(family)
    blocks, ends = params["blocks"], params["final_layer"]
    # The official network holds q, k and v as one matrix, Algorithm 1 k and v.
    fans = {"DiT": {"q": 3 * D, "k": 3 * D, "v": 3 * D}, "LiT": {"q": D, "k": 2 * D, "v": 2 * D}}
    xavier = [(blocks["attn"][name], D, fan) for name, fan in (fans[family] | {"out": D}).items()]
    xavier += [(blocks["mlp"]["fc1"], D, 4 * D), (blocks["mlp"]["fc2"], 4 * D, D)]
    xavier += [(params["x_embedder"], 12, D)]
    for leaf, fan_in, fan_out in xavier:
        bound, peak = np.sqrt(6 / (fan_in + fan_out)), np.abs(leaf["kernel"]).max()
        assert 0.97 * bound < peak <= bound
    normal = [params["t_embedder"][name]["kernel"] for name in ("fc1", "fc2")]
    for leaf in (*normal, params["y_embedder"]["embedding"]):
        assert np.std(leaf) == pytest.approx(0.02, rel=0.15)
    for closed in (blocks["adaln"], ends["adaln"], ends["linear"]):
        assert not any(np.any(leaf) for leaf in closed.values())
    for path, leaf in jax.tree.leaves_with_path(params):
        if path[-1].key == "bias" and path[-2].key != "dwc":
            assert not np.any(leaf), path
    assert not np.array_equal(*blocks["attn"]["q"]["kernel"]), "blocks must not be copies"


def test_initial_filters() -> None:
    """torch's default for K x K filters of one input channel: uniform on +-1/K, bias included."""
    for leaf in initial("LiT")["blocks"]["attn"]["dwc"].values():
        assert 0.8 / 3 < np.abs(leaf).max() <= 1 / 3
        assert np.abs(np.mean(leaf)) < 0.1 < np.std(leaf)


# --- how it is computed does not change what is computed ---


@functools.cache
def loss_and_gradient(config: DiTConfig) -> Callable[..., Any]:
    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        out = apply_fn(config)(params, *batch(config))
        return jnp.sum(jnp.square(out)), out

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize(
    "fields",
    [{"scan_unroll": 2}, *({"remat": name} for name in REMAT_POLICIES if name != "none")],
    ids=str,
)
def test_unrolling_and_remat_keep_output_and_gradient(fields: dict[str, Any]) -> None:
    plain = tiny(kernel_size=None)
    params = random_like(abstract_params(plain))
    gradient, out = loss_and_gradient(dataclasses.replace(plain, **fields))(params)
    expected_gradient, expected = loss_and_gradient(plain)(params)
    assert relative_error(out, expected) < 2e-6
    for ours, reference in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        assert np.any(reference), "a parameter without influence"
        assert relative_error(ours, reference) < 1e-5


@pytest.mark.parametrize(("remat", "count"), [("none", 0), ("full", 1), ("dots", 1)])
def test_remat_reaches_the_program(remat: str, count: int) -> None:
    config = tiny("DiT", remat=remat)
    program = str(jax.make_jaxpr(apply_fn(config))(abstract_params(config), *batch(config)))
    assert program.count("remat2[") + program.count("checkpoint[") == count


def test_unknown_remat_policy() -> None:
    with pytest.raises(ValueError, match=r"remat policy 'ful'; did you mean 'full'.*dots"):
        create_model("LiT", **TINY, remat="ful")


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match=r"dtype 'bfloat'; did you mean 'bfloat16'.*float32"):
        create_model("LiT", **TINY, dtype="bfloat")


def test_bfloat16_model_returns_float32() -> None:
    config = tiny(dtype="bfloat16")
    params = random_like(abstract_params(config))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config))} == {jnp.dtype("f4")}
    out, expected = (forward(c)(params, *batch(c)) for c in (config, tiny()))
    assert out.dtype == jnp.float32
    assert 1e-5 < relative_error(out, expected) < 0.05


def test_with_activations() -> None:
    """The same output, the embedding, and per block what the final layer would read after it."""
    config = tiny("DiT")
    params = random_like(abstract_params(config))
    x, t, labels = batch(config)
    call = jax.jit(lambda p: with_params(config, p).with_activations(x, t, labels))
    out, kept = call(params)
    assert relative_error(out, forward(config)(params, x, t, labels)) < 1e-6
    assert kept["blocks"].shape == (2, 2, 4, 16)
    model = with_params(config, params)
    embedding = model.x_embedder(patchify(x, 2)) + sincos_position_table((2, 2), 16)
    assert relative_error(kept["embedding"], embedding) < 1e-6
    # After one block, the final layer gives the output of a network of depth one.
    first = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
    shallow = forward(tiny("DiT", depth=1))(first, x, t, labels)
    tokens = model.final_layer(kept["blocks"][0], model.t_embedder(t) + model.y_embedder(labels))
    assert relative_error(unpatchify(tokens, (2, 2), 2), shallow) < 1e-5
    # Layer norm hides the scale of a block's output; closed gates do not.
    params["blocks"]["adaln"] = jax.tree.map(np.zeros_like, params["blocks"]["adaln"])
    _, kept = call(params)
    np.testing.assert_array_equal(kept["blocks"], np.stack([kept["embedding"]] * 2))
