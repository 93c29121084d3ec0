"""Focused linear attention: the golden cases of FLatten, and what the focusing map promises."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.attention.focused import focus
from lit_jax.models.attention.linear import feature_map
from support.attention_cases import (
    assert_golden,
    golden_cases,
    mixer_config,
    mixer_fn,
    new_mixer,
    new_params,
    sine_input,
    value_and_gradients,
)
from support.golden_cases import relative_error

SMALL = {"hidden_size": 16, "num_heads": 2, "kernel_size": None}


@pytest.mark.parametrize(("folder", "case"), golden_cases("focused_"))
def test_golden(folder: Path, case: str) -> None:
    """Output and gradients of the official module, position table and scale included."""
    assert_golden(folder, case, "focused")


def test_focusing_map_check_values() -> None:
    x = feature_map(jnp.asarray(sine_input((1, 4, 8), 0.9)), "relu") / np.log(2)
    out = np.asarray(focus(x), np.float64).ravel()
    np.testing.assert_allclose(out[:5], [0, 0.877316, 1.685775, 0.142485, 0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(out[-3:], [1.060196, 1.661671, 0.092868], rtol=0, atol=1e-4)
    assert out.sum() == pytest.approx(13.55720, abs=1e-3)
    assert np.square(out).sum() == pytest.approx(18.08085, abs=1e-3)


@pytest.mark.parametrize("factor", [2, 3])
def test_focusing_sharpens_and_keeps_the_norm(factor: int) -> None:
    x = jnp.array([[3.0, 4.0], [1e-6, 1e-6], [2e-7, 1e-7], [1e3, 2e3]])
    out = focus(x, factor)
    norm = np.linalg.norm(np.asarray(x, np.float64), axis=-1)
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), norm, rtol=1e-5)
    ratio = out[:, 1] / out[:, 0]
    np.testing.assert_allclose(ratio, (x[:, 1] / x[:, 0]) ** factor, rtol=1e-5)


def test_position_and_scale_start_at_zero() -> None:
    mixer = new_mixer(mixer_config("focused", (3, 5), **SMALL))
    assert mixer.position.shape == (1, 15, 16) and mixer.scale.shape == (1, 1, 16)
    assert not np.any(mixer.position[...]) and not np.any(mixer.scale[...])


def test_position_is_added_to_the_keys_only() -> None:
    """A table row acts like the same vector added to the bias of k at that token alone."""
    config = mixer_config("focused", (3, 5), **SMALL)
    mixer = new_mixer(config)
    x = jnp.asarray(sine_input((2, 15, 16), 0.7))
    q, k = mixer.features(x)
    shift = jnp.asarray(sine_input((15, 16), 0.4))
    mixer.position[...] = shift[None]
    q_shifted, k_shifted = mixer.features(x)
    np.testing.assert_array_equal(q_shifted, q)
    for token in (0, 7, 14):
        mixer.position[...] = jnp.zeros((1, 15, 16))
        mixer.k.bias[...] = shift[token]
        np.testing.assert_allclose(k_shifted[:, token], mixer.features(x)[1][:, token], rtol=1e-5)
        assert not np.allclose(k_shifted[:, token], k[:, token])


@pytest.mark.parametrize("scale", [0.0, 8.0])
def test_dead_rows_keep_finite_gradients(scale: float) -> None:
    """No active unit and a large learned scale: the cubes of 1e-7 must not vanish into 0 / 0."""
    config = mixer_config("focused", (3, 5), **SMALL)
    params = new_params(config)
    params["scale"] = jnp.full((1, 1, 16), scale)
    for name in "qk":
        params[name]["bias"] = jnp.full((16,), -1e3)
    x = jnp.asarray(sine_input((2, 15, 16), 0.7))
    out, gradients = value_and_gradients(config)(params, x, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))


def test_bfloat16_with_large_activations() -> None:
    single = mixer_config("focused", (16, 16), **SMALL)
    half = mixer_config("focused", (16, 16), dtype="bfloat16", **SMALL)
    params = new_params(single)
    x = jnp.asarray(1e3 * sine_input((1, 256, 16), 0.7), jnp.bfloat16)
    out = jax.jit(mixer_fn(half))(params, x)
    expected = jax.jit(mixer_fn(single))(params, x.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16
    assert relative_error(np.asarray(out, np.float32), expected) < 0.03
