"""Softmax attention against its formula in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.models.attention.softmax import softmax_attention
from support.attention_cases import mixer_config, mixer_fn, new_params
from support.golden_cases import relative_error


def by_formula(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v in float64, arrays [B, N, H, d]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhnm,bmhd->bnhd", weights, v)


def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).normal(size=shape)).astype("f4")


def test_equals_the_formula() -> None:
    q, k, v = draw(3, 2, 21, 3, 8, scale=2.0)
    assert relative_error(softmax_attention(q, k, v), by_formula(q, k, v)) < 1e-5


def test_large_logits_stay_finite_in_bfloat16() -> None:
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in draw(3, 1, 40, 2, 16, scale=30.0))
    out = softmax_attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    assert relative_error(np.asarray(out, "f8"), by_formula(q, k, v)) < 0.02


def test_mixer_projects_splits_heads_and_merges() -> None:
    """The module by hand: head h owns channels h*d .. (h+1)*d - 1 of q, k, v and of the output."""
    config = mixer_config("softmax", (3, 4), hidden_size=16, num_heads=4)
    params, x = new_params(config), draw(2, 12, 16)
    q, k, v = (
        (x @ params[name]["kernel"] + params[name]["bias"]).reshape(2, 12, 4, 4) for name in "qkv"
    )
    merged = by_formula(q, k, v).reshape(2, 12, 16)
    expected = merged @ params["out"]["kernel"] + params["out"]["bias"]
    assert relative_error(jax.jit(mixer_fn(config))(params, x), expected) < 1e-5


def test_permutation_equivariance() -> None:
    config = mixer_config("softmax", (3, 4), hidden_size=16, num_heads=2, qkv_bias=False)
    params, f = new_params(config), jax.jit(mixer_fn(config))
    assert set(params["q"]) == set(params["k"]) == set(params["v"]) == {"kernel"}
    assert set(params["out"]) == {"kernel", "bias"}
    x, order = draw(2, 12, 16), np.random.default_rng(1).permutation(12)
    assert relative_error(f(params, x[:, order]), np.asarray(f(params, x))[:, order]) < 1e-5
