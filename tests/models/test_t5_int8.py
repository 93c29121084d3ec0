"""int8 matrices: the rounding, the layers on it, a whole encoder, and what it holds in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.functional import Params, abstract_params, apply_fn, create_model, init_params
from lit_jax.models.t5.config import T5Config
from lit_jax.models.t5.int8 import (
    GROUP,
    Int8Dense,
    Int8TokenTable,
    dequantise,
    group_size,
    quantise,
)
from support.attention_cases import random_like
from support.golden_cases import relative_error
from support.text_encoder_cases import TINY_T5

SMALL = T5Config(vocab_size=40, d_model=64, d_kv=16, d_ff=96, num_layers=4, num_heads=4)
IDS = np.arange(36).reshape(2, 18)
MASK = np.arange(18) < np.array([[18], [11]])


def int8(config: T5Config, dtype: str = "float32") -> T5Config:
    return dataclasses.replace(config, weights="int8", dtype=dtype)


def rounded(params: Params) -> Params:
    """A float tree in its int8 form, module by module."""
    out: Params = {}
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            out[name] = rounded(leaf)
        elif name == "kernel":
            out[name], out["scale"] = jax.vmap(lambda w: quantise(w, 0))(leaf)
        else:
            out[name] = leaf
    return out


def int8_params(params: Params) -> Params:
    embedding, scale = quantise(params["shared"]["embedding"], 1)
    shared = {"embedding": embedding, "scale": scale}
    return rounded(params) | {"shared": shared, "relative_bias": params["relative_bias"]}


# --- the rounding ---


@pytest.mark.parametrize("axis", [0, 1])
def test_rounding_by_numpy(axis: int) -> None:
    """Every number is within half a step of its group's own scale, computed number by number."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((96, 128)).astype(np.float32) * rng.uniform(0.01, 9, (96, 128))
    integers, scale = quantise(jnp.asarray(weights, jnp.float32), axis)
    assert integers.dtype == jnp.int8 and scale.dtype == jnp.bfloat16
    assert scale.shape == ((96 // GROUP, 128) if axis == 0 else (96, 128 // GROUP))
    steps = np.repeat(np.asarray(scale, np.float32), GROUP, axis)
    found = np.asarray(dequantise(integers, scale, axis))
    np.testing.assert_array_equal(found, np.asarray(integers, np.float32) * steps)
    assert np.all(np.abs(found - weights) <= 0.5001 * steps)
    groups = np.abs(weights.T if axis == 0 else weights).reshape(-1, GROUP).max(1)
    own = np.asarray(scale, np.float32)
    own = (own.T if axis == 0 else own).reshape(-1)
    assert np.all(own * 127 >= groups) and np.all(own * 127 <= 1.01 * groups)


def test_extremes() -> None:
    """Zeros stay zeros, the largest numbers keep their sign, nothing wraps around."""
    weights = jnp.zeros((GROUP, 3)).at[:, 1].set(1e30).at[:, 2].set(-1e-30)
    integers, scale = quantise(weights, 0)
    assert np.all(np.isfinite(scale.astype(jnp.float32)))
    np.testing.assert_array_equal(integers[:, 0], 0)
    assert np.all(np.abs(integers[:, 1:]) >= 126)
    found = dequantise(integers, scale, 0)
    np.testing.assert_allclose(found[:, 1:], weights[:, 1:], rtol=0.005)


@pytest.mark.parametrize(("count", "size"), [(4096, 32), (10240, 32), (24, 24), (12, 12), (67, 1)])
def test_groups_divide_any_width(count: int, size: int) -> None:
    assert group_size(count) == size


# --- the layers ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense(dtype: str) -> None:
    """The product with the matrix that the integers stand for; no other rounding in float32."""
    layer = Int8Dense(
        64, 24, kernel_init=nnx.initializers.normal(0.1), dtype=dtype, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(1), (2, 5, 64))
    kernel = dequantise(layer.kernel[...], layer.scale[...], 0)
    found = layer(x)
    assert found.dtype == dtype and found.shape == (2, 5, 24)
    error = relative_error(found.astype(jnp.float32), x @ kernel)
    assert error < (1e-6 if dtype == "float32" else 0.02)


def test_table() -> None:
    table = Int8TokenTable(30, 64, init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    whole = dequantise(table.embedding[...], table.scale[...], 1)
    ids = np.array([[0, 29, 7], [7, 7, 1]])
    np.testing.assert_array_equal(table(ids), whole[ids])
    assert np.isnan(jax.jit(table)(np.array([[30]]))).all(), "an id beyond the table must be seen"


# --- the encoder ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_those_of_the_float_encoder(dtype: str) -> None:
    params = init_params(SMALL, jax.random.key(0))
    expected = np.asarray(jax.jit(apply_fn(SMALL))(params, IDS, MASK))
    found = np.asarray(jax.jit(apply_fn(int8(SMALL, dtype)))(int8_params(params), IDS, MASK))
    assert found.dtype == np.float32
    cosine = np.sum(found * expected, -1)
    cosine /= np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert cosine[MASK].min() > 0.999
    assert relative_error(found, expected) > 1e-4, "nothing was rounded"


def test_same_as_the_float_encoder_of_the_rounded_numbers() -> None:
    """The loss is that of the rounding alone."""
    params = int8_params(random_like(abstract_params(SMALL)))

    def widened(tree: Params) -> Params:
        if "kernel" in tree:
            return {
                "kernel": jax.vmap(lambda q, s: dequantise(q, s, 0))(tree["kernel"], tree["scale"])
            }
        return {k: widened(v) if isinstance(v, dict) else v for k, v in tree.items()}

    table = dequantise(params["shared"]["embedding"], params["shared"]["scale"], 1)
    wide = widened(params) | {"shared": {"embedding": table}}
    found = jax.jit(apply_fn(int8(SMALL)))(params, IDS, MASK)
    assert relative_error(found, jax.jit(apply_fn(SMALL))(wide, IDS, MASK)) < 1e-5


def test_every_matrix_is_int8() -> None:
    """Norms and position bias are float32, scales bfloat16, and nothing else is."""
    kinds: dict[str, set[str]] = {}
    for path, leaf in jax.tree.leaves_with_path(abstract_params(int8(SMALL))):
        kinds.setdefault(str(leaf.dtype), set()).add("/".join(key.key for key in path))
    norms = {f"blocks/{n}_norm/scale" for n in ("attn", "mlp")} | {"final_norm/scale"}
    assert kinds["float32"] == norms | {"relative_bias/embedding"}
    matrices = {f"attn/{n}" for n in ("q", "k", "v", "out")} | {
        f"mlp/{n}" for n in ("wi_0", "wi_1", "wo")
    }
    matrices = {f"blocks/{name}" for name in matrices}
    assert kinds["int8"] == {f"{name}/kernel" for name in matrices} | {"shared/embedding"}
    assert kinds["bfloat16"] == {f"{name}/scale" for name in matrices} | {"shared/scale"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_is_not_widened_all_at_once(dtype: str) -> None:
    """What the program needs beside its arguments does not grow with the number of layers."""

    def scratch(layers: int) -> int:
        deep = dataclasses.replace(int8(SMALL, dtype), num_layers=layers, d_model=128, d_ff=256)
        program = jax.jit(apply_fn(deep)).lower(abstract_params(deep), IDS, MASK).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    layer = 4 * (4 * 128 * 64 + 3 * 128 * 256)  # bytes in float32
    assert scratch(16) - scratch(4) < layer / 4


def test_created_by_name() -> None:
    fields: dict[str, Any] = {
        k: v for k, v in vars(TINY_T5).items() if k not in ("family", "dtype")
    }
    model = create_model("T5", **(fields | {"weights": "int8"}))
    assert model.blocks.mlp.wo.kernel[...].dtype == jnp.int8
    assert np.all(np.isfinite(model(jnp.asarray([[5, 6, 1]]))))
