"""The T5 encoder in bfloat16: what stays float32, and arrays that are bfloat16 themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.functional import Params, abstract_params, apply_fn, with_params
from lit_jax.models.t5.config import T5Config
from lit_jax.models.t5.model import GatedMlp
from support.attention_cases import random_like
from support.golden_cases import relative_error

SMALL = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4)
SMALL16 = dataclasses.replace(SMALL, dtype="bfloat16")
IDS = np.arange(36).reshape(2, 18)
MASK = np.arange(18) < np.array([[18], [11]])


def small_params() -> Params:
    """Kernels that keep the size of what they read, norms near 1."""
    params = random_like(abstract_params(SMALL))
    for path, leaf in jax.tree.leaves_with_path(params):
        leaf /= np.std(leaf)
        if path[-1].key == "kernel":
            leaf /= np.sqrt(leaf.shape[-2])
        elif path[-1].key == "scale":
            leaf[...] = 1 + 0.2 * leaf
    # The logits are not divided by sqrt(d).
    params["blocks"]["attn"]["q"]["kernel"] /= np.sqrt(SMALL.d_kv)
    return params


def states(config: T5Config, params: Params) -> jax.Array:
    """[num_layers + 1, B, L, D]"""
    return jax.jit(lambda p: with_params(config, p).with_hidden_states(IDS, MASK)[1])(params)


def test_bfloat16_is_close() -> None:
    params = small_params()
    out, expected = (jax.jit(apply_fn(c))(params, IDS, MASK) for c in (SMALL16, SMALL))
    assert out.dtype == jnp.float32
    assert 1e-4 < relative_error(out, expected) < 0.03


def test_small_updates_of_a_large_stream_survive() -> None:
    """Embeddings of 1000, as T5's outlier channels are: a stream in bfloat16 would have steps of 4
    and lose what the blocks add."""
    params = small_params()
    params["shared"]["embedding"] *= 1000
    found, expected = states(SMALL16, params), states(SMALL, params)
    update, wanted = found[3] - found[0], expected[3] - expected[0]
    assert np.abs(wanted).max() < 30
    assert relative_error(update, wanted) < 0.05


def test_large_gated_products() -> None:
    """Products beyond the range of float16, which overflow there, and the stream they make."""
    params = small_params()
    for name in ("wi_0", "wi_1"):
        params["blocks"]["mlp"][name]["kernel"] *= 1000
    found, expected = states(SMALL16, params), states(SMALL, params)
    assert np.abs(expected).max() > 65504
    assert np.isfinite(found).all()
    for state, wanted in zip(found, expected, strict=True):
        assert relative_error(state, wanted) < 0.03


def test_projection_of_the_gated_product_is_float32() -> None:
    """Equal to float64 mathematics on the two bfloat16 projections, whatever cancels in `wo`."""
    mlp = GatedMlp(SMALL16, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 6, 32)))
    gate, linear = (np.asarray(p(x), np.float64) for p in (mlp.wi_0, mlp.wi_1))
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    expected = (gelu * linear) @ np.asarray(mlp.wo.kernel[...], np.float64)
    assert mlp(x).dtype == jnp.float32
    assert relative_error(mlp(x), expected) < 1e-5


@pytest.mark.parametrize("config", [SMALL, SMALL16], ids=lambda config: config.dtype)
def test_bfloat16_arrays(config: T5Config) -> None:
    """Parameters in bfloat16 give what the same numbers in float32 give."""
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), small_params())
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    found, expected = (jax.jit(apply_fn(config))(p, IDS, MASK) for p in (stored, widened))
    assert found.dtype == jnp.float32
    assert relative_error(found, expected) < 2e-6


@pytest.mark.parametrize("config", [SMALL, SMALL16], ids=lambda config: config.dtype)
def test_bfloat16_arrays_are_not_widened_all_at_once(config: T5Config) -> None:
    """What the program needs beside its arguments does not grow with the number of layers."""

    def scratch(layers: int, dtype: Any) -> int:
        deep = dataclasses.replace(config, num_layers=layers, d_model=128, d_ff=256)
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract_params(deep)
        )
        program = jax.jit(apply_fn(deep)).lower(params, IDS, MASK).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    layer = 4 * (4 * 128 * 32 + 3 * 128 * 256)  # bytes in float32
    assert scratch(16, jnp.bfloat16) - scratch(4, jnp.bfloat16) < layer
    assert scratch(16, jnp.bfloat16) < 1.1 * scratch(16, jnp.float32)


def test_bfloat16_arrays_have_gradients() -> None:
    def loss(params: Params) -> jax.Array:
        return jnp.sum(jnp.square(apply_fn(SMALL)(params, IDS, MASK)[..., :7]))

    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), small_params())
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    found, expected = (jax.jit(jax.grad(loss))(params) for params in (stored, widened))
    for (path, leaf), want in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert np.any(want), path
        assert relative_error(leaf.astype(jnp.float32), want) < 0.02, path
