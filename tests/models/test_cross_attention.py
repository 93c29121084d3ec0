"""Cross-attention under masks against its formula in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.attention.cross import CrossAttention
from lit_jax.models.functional import Params
from lit_jax.models.pixart.config import PixArtConfig
from support.attention_cases import random_like
from support.golden_cases import relative_error
from support.pixart_cases import filled, quick_jit, tiny

CONFIG = tiny(num_heads=2, cross_num_heads=3)
MASKS = {
    "prefix": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    "holes": [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]],
    "all": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
}


def new(config: PixArtConfig) -> CrossAttention:
    return CrossAttention(config, rngs=nnx.Rngs(0))


def params_of(config: PixArtConfig, scale: float = 1.0) -> Params:
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: new(config))))
    return jax.tree.map(lambda leaf: scale * leaf, random_like(abstract))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def by_formula(params: Params, x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Three heads; masked tokens are left out of the caption altogether. float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    B, N, D = x.shape
    out = np.empty((B, N, D))
    for b in range(B):
        tokens = y[b, np.asarray(mask[b], bool)].astype(np.float64)
        q = (x[b] @ p["q"]["kernel"] + p["q"]["bias"]).reshape(N, 3, -1)
        k, v = ((tokens @ p[n]["kernel"] + p[n]["bias"]).reshape(len(tokens), 3, -1) for n in "kv")
        logits = np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(D // 3)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[b] = np.einsum("hnm,mhd->nhd", weights, v).reshape(N, D)
    return out @ p["out"]["kernel"] + p["out"]["bias"]


@quick_jit
def run(params: Params, x: jax.Array, y: jax.Array, mask: jax.Array | None) -> jax.Array:
    return filled(lambda: new(CONFIG), params)(x, y, mask)


@pytest.mark.parametrize("name", MASKS)
def test_equals_the_formula(name: str) -> None:
    params, x, y = params_of(CONFIG, 2.0), draw(2, 7, 24), draw(2, 5, 24, seed=1)
    mask = np.array(MASKS[name], bool)
    expected = by_formula(params, x, y, mask)
    assert relative_error(run(params, x, y, mask), expected) < 1e-5
    if name == "all":
        assert relative_error(run(params, x, y, None), expected) < 1e-5


def test_padding_has_no_influence_at_all() -> None:
    """Not even where its logits are enormous."""
    params, x, y = params_of(CONFIG), draw(2, 7, 24), draw(2, 5, 24, seed=1)
    mask = np.array(MASKS["holes"], bool)
    loud = np.where(mask[..., None], y, 1e6).astype("f4")
    np.testing.assert_array_equal(run(params, x, loud, mask), run(params, x, y, mask))


def test_a_caption_without_tokens_adds_the_output_bias_alone() -> None:
    params, x, y = params_of(CONFIG), draw(2, 7, 24), draw(2, 5, 24, seed=1)
    mask = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    out = run(params, x, y, mask)
    np.testing.assert_allclose(out[1], np.tile(params["out"]["bias"], (7, 1)), rtol=0, atol=1e-7)
    assert relative_error(out[:1], by_formula(params, x[:1], y[:1], mask[:1])) < 1e-5


def test_softmax_is_a_float32_island() -> None:
    """bfloat16 in and out; logits of some hundreds neither overflow nor lose the largest one."""
    low = tiny(num_heads=2, cross_num_heads=3, dtype="bfloat16")
    params = params_of(low, 4.0)
    x, y = draw(2, 7, 24), draw(2, 5, 24, seed=1)
    mask = np.array(MASKS["prefix"], bool)
    out = filled(lambda: new(low), params)(
        jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16), mask
    )
    assert out.dtype == jnp.bfloat16
    assert relative_error(np.asarray(out, "f8"), by_formula(params, x, y, mask)) < 0.1
