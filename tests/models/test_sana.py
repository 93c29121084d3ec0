"""SANA's linear attention: its definition, dead features, and where it differs from LiT's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.checkpoints.pairing import layout_named
from lit_jax.models.attention.linear import linear_attention
from lit_jax.models.attention.sana import sana_attention
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import model_config
from support.attention_cases import (
    mixer_config,
    mixer_fn,
    new_params,
    sine_input,
    value_and_gradients,
)
from support.golden_cases import relative_error

SMALL = {"hidden_size": 64, "num_heads": 2, "kernel_size": None, "qkv_bias": False}


def explicit(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The definition, with its N x N matrix and sums over all tokens."""
    A = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest")
    A = A / (jnp.sum(A, axis=-1, keepdims=True) + 1e-8)
    return jnp.einsum("bhnm,bmhd->bnhd", A, v, precision="highest")


@pytest.mark.parametrize("tokens", [7, 131])
def test_equals_its_n_by_n_form(tokens: int) -> None:
    """Output and gradients; some features are zero, as ReLU makes them."""
    shape = (2, tokens, 3, 8)
    q, k = (jnp.maximum(sine_input(shape, a), 0.0) for a in (0.7, 0.9))
    v, R = (jnp.asarray(sine_input(shape, a)) for a in (0.3, 0.5))

    def both(attention):
        def loss(q, k, v):
            out = attention(q, k, v)
            return jnp.sum(out * R), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    for ours, expected in zip(both(sana_attention), both(explicit), strict=True):
        assert ours.dtype == jnp.float32
        assert relative_error(ours, expected) < 5e-5


def test_every_weight_counts() -> None:
    """A mean of the values, however small the features are; LiT's epsilons make it smaller."""
    q = k = jnp.full((1, 100, 1, 4), 1e-3)
    v = jnp.full((1, 100, 1, 4), 2.0)
    np.testing.assert_allclose(sana_attention(q, k, v), 2.0, rtol=1e-3)
    assert float(jnp.max(linear_attention(q, k, v))) < 1.7
    # In sums, so that the epsilon is 1e-8 for any number of tokens.
    tiny = jnp.full((1, 100, 1, 1), 1e-5)
    expected = 2.0 * 1e-8 / (1e-8 + 1e-8)
    np.testing.assert_allclose(sana_attention(tiny, tiny, v[..., :1]), expected, rtol=1e-5)


@pytest.mark.parametrize("dead", ["q", "k", "qk"])
def test_dead_features_give_zero_and_finite_gradients(dead: str) -> None:
    """No unit of any query or key is active: 0 / 1e-8, forwards and backwards."""
    config = mixer_config("sana", (4, 4), **SMALL | {"qkv_bias": True})
    params = new_params(config)
    for name in dead:
        params[name]["bias"] = jnp.full((64,), -1e3)
    params["out"]["bias"] = jnp.zeros(64)
    x = jnp.asarray(sine_input((1, 16, 64), 0.3))
    out, gradients = value_and_gradients(config)(params, x, x)
    assert not np.any(out)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.any(gradients[0]["out"]["bias"])


def test_module_is_its_equation() -> None:
    """Projections without bias, ReLU without epsilon, heads of 32 channels, no convolution."""
    config = mixer_config("sana", (3, 5), **SMALL)
    params = new_params(config)
    assert sorted(params) == ["k", "out", "q", "v"] and list(params["q"]) == ["kernel"]
    x = jnp.asarray(sine_input((2, 15, 64), 0.7))
    q, k, v = ((x @ params[name]["kernel"]).reshape(2, 15, 2, 32) for name in "qkv")
    o = explicit(jax.nn.relu(q), jax.nn.relu(k), v).reshape(2, 15, 64)
    expected = o @ params["out"]["kernel"] + params["out"]["bias"]
    assert relative_error(jax.jit(mixer_fn(config))(params, x), expected) < 1e-5


@pytest.mark.parametrize("changed", [{"kernel_size": 3}, {"kernel_fn": "gelu"}, {"num_heads": 4}])
def test_options_are_used(changed: dict[str, object]) -> None:
    x = jnp.asarray(sine_input((1, 16, 64), 0.7))
    plain, other = (mixer_config("sana", (4, 4), **SMALL | extra) for extra in ({}, changed))
    params = new_params(other)
    shared = {name: params[name] for name in ("q", "k", "v", "out")}
    outputs = jax.jit(mixer_fn(plain))(shared, x), jax.jit(mixer_fn(other))(params, x)
    assert relative_error(*outputs) > 1e-2


def test_bfloat16_with_large_activations() -> None:
    single, half = (
        mixer_config("sana", (16, 16), dtype=name, **SMALL) for name in ("float32", "bfloat16")
    )
    params = new_params(single)
    x = jnp.asarray(1e3 * sine_input((1, 256, 64), 0.7), jnp.bfloat16)
    expected = jax.jit(mixer_fn(single))(params, x.astype(jnp.float32))
    out = jax.jit(mixer_fn(half))(params, x)
    assert out.dtype == jnp.bfloat16
    assert relative_error(np.asarray(out, np.float32), expected) < 0.03


@pytest.mark.parametrize("family", ["DiT", "PixArt"])
def test_model_has_no_layout_of_pytorch(family: str) -> None:
    """A model of either kind can have it; a checkpoint of it would be read as another mixer."""
    size = {"hidden_size": 64, "depth": 2, "num_heads": 2, "input_size": 8}
    config = model_config(family, mixer="sana", kernel_size=None, **size)
    assert "dwc" not in abstract_params(config)["blocks"]["attn"]
    for layout in ("lit", "dit", "pixart"):
        with pytest.raises(ValueError, match="no layout can hold a .* model with the 'sana' mixer"):
            layout_named(config, layout)
