"""Layers: check values of the official implementation, orders of patches, precision."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.layers import (
    Dense,
    LabelEmbedder,
    Mlp,
    TimestepEmbedder,
    layer_norm,
    modulate,
    patchify,
    timestep_embedding,
    unpatchify,
    xavier_uniform,
)
from lit_jax.models.position_tables import sincos_position_table
from support.golden_cases import golden_sources, load_state_dict


def test_position_table_check_values() -> None:
    """Width 1152, 16 x 16 tokens; the column in the first half of the channels, sine first."""
    table = sincos_position_table((16, 16), 1152)
    assert table.shape == (256, 1152) and table.dtype == np.float32
    expected = {0: 0.841471, 1: 0.824051, 287: 1.0325e-4, 288: 0.540302, 575: 1.0}
    for index, value in expected.items():
        assert table[1, index] == pytest.approx(value, abs=1e-6)  # row 0, column 1
        assert table[16, 576 + index] == pytest.approx(value, abs=1e-6)  # row 1, column 0
    assert table[1, 576] == 0.0 and table[1, 864] == 1.0
    assert table.sum(dtype=np.float64) == pytest.approx(134598.948, abs=0.01)
    assert np.square(table, dtype=np.float64).sum() == pytest.approx(147456, abs=0.05)


def test_position_table_of_a_rectangle() -> None:
    """Row-major tokens: the first half depends on the column alone, the second on the row."""
    table = sincos_position_table((3, 5), 16).reshape(3, 5, 16)
    assert (table[..., :8] == table[:1, :, :8]).all()
    assert (table[..., 8:] == table[:, :1, 8:]).all()
    assert (table[:3, :3, :8] == table[:3, :3, 8:].transpose(1, 0, 2)).all()
    assert len(np.unique(table.reshape(15, 16), axis=0)) == 15


@pytest.mark.parametrize("folder", golden_sources("dit_p4.npz"))
def test_position_table_is_the_official_one(folder: Path) -> None:
    stored = load_state_dict(folder, "dit_p4")["pos_embed"][0]
    side = int(np.sqrt(len(stored)))
    table = sincos_position_table((side, side), stored.shape[1])
    np.testing.assert_allclose(table, stored, rtol=0, atol=2e-7)


def test_timestep_embedding_check_values() -> None:
    """Cosine first, frequencies 10000^(-j/128)."""
    embedding = timestep_embedding(jnp.array([500, 999]))
    assert embedding.shape == (2, 256) and embedding.dtype == jnp.float32
    expected = [-0.883849, 0.945946, 0.283662, -0.467772, -0.958924]
    np.testing.assert_allclose(embedding[0, jnp.array([0, 1, 64, 128, 192])], expected, atol=1e-4)
    np.testing.assert_allclose(embedding[1, jnp.array([0, 128])], [0.99965, -0.026461], atol=1e-4)


def test_timesteps_may_be_fractional() -> None:
    low, middle, high = timestep_embedding(jnp.array([7.0, 7.5, 8.0]))
    np.testing.assert_array_equal(low, timestep_embedding(jnp.array([7]))[0])
    assert not np.allclose(middle, low) and not np.allclose(middle, high)
    assert middle[0] == pytest.approx(np.cos(7.5), abs=1e-5)


def test_neighbouring_timesteps_differ_in_bfloat16() -> None:
    """The spacing of bfloat16 at 999 is 4: the sinusoid must not be computed in it."""
    half, single = (
        TimestepEmbedder(16, dtype=dtype, rngs=nnx.Rngs(0)) for dtype in ("bfloat16", "float32")
    )
    t = jnp.array([996, 999])
    for layer in ("fc1", "fc2"):
        getattr(half, layer).kernel[...] = 10 * getattr(half, layer).kernel[...]
        getattr(single, layer).kernel[...] = getattr(half, layer).kernel[...]
    out, expected = half(t), single(t)
    assert out.dtype == jnp.bfloat16
    change = np.asarray(out[1] - out[0], np.float32)
    difference = np.abs(change - np.asarray(expected[1] - expected[0])).max()
    assert difference < 0.1 * np.abs(change).max()


def test_patch_embedding_order() -> None:
    """A convolution weight arange(16) over (channel, row, column) answers impulses as torch's."""
    kernel = jnp.arange(16.0).reshape(4, 2, 2).transpose(1, 2, 0).reshape(16, 1)
    x = np.zeros((2, 4, 4, 4), np.float32)
    x[0, 0, 1, 1] = 1.0  # channel 1, row 0, column 1 of the first patch
    x[0, 2, 0, 3] = 1.0  # channel 3, row 0, column 0 of the third patch
    x[1, 1, 2, 2] = 1.0  # channel 2, row 1, column 0 of the second patch
    embedded = (patchify(jnp.asarray(x), 2) @ kernel)[..., 0]
    np.testing.assert_array_equal(embedded, [[5, 0, 12, 0], [0, 10, 0, 0]])


def test_unpatchify_order() -> None:
    """Token vectors 0..31, 32..63, ...: inside a token row, column, channel, channel fastest."""
    image = unpatchify(jnp.arange(128.0).reshape(1, 4, 32), (2, 2), 2)
    np.testing.assert_array_equal(image[0, 0, :, 0], [0, 8, 32, 40])
    np.testing.assert_array_equal(image[0, 1, :, 0], [16, 24, 48, 56])
    np.testing.assert_array_equal(image[0, 2, :, 0], [64, 72, 96, 104])
    np.testing.assert_array_equal(image[0, 0, 0], np.arange(8))


def test_unpatchify_inverts_patchify_on_a_rectangle() -> None:
    x = jnp.arange(2 * 6 * 12 * 5.0).reshape(2, 6, 12, 5)
    tokens = patchify(x, 3)
    assert tokens.shape == (2, 8, 45)
    np.testing.assert_array_equal(tokens[0, 4], x[0, 3:6, :3].ravel())  # second row of tokens
    np.testing.assert_array_equal(unpatchify(tokens, (2, 4), 3), x)


def test_layer_norm_is_two_pass() -> None:
    """A mean of 1e4 with deviations of 1 cancels in E[x^2] - E[x]^2 of float32."""
    x = (1e4 + np.random.default_rng(0).normal(size=(5, 64))).astype("f4")
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x)), exact, rtol=0, atol=2e-3)


def test_layer_norm_epsilon() -> None:
    """Deviations of 1e-3: variance 1e-6 equals eps, so the result is 1/sqrt(2) of unit scale."""
    out = layer_norm(jnp.array([1e-3, -1e-3]))
    np.testing.assert_allclose(out, [2**-0.5, -(2**-0.5)], rtol=1e-4)


def test_layer_norm_statistics_are_float32() -> None:
    x = jnp.asarray(100 + np.arange(256) % 8, jnp.bfloat16)
    out = layer_norm(x)
    assert out.dtype == jnp.bfloat16
    expected = layer_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(out, "f4"), np.asarray(expected, "f4"))


def test_modulate() -> None:
    """Scale 0 and shift 0 are the identity; both are per example and channel."""
    x = jnp.arange(12.0).reshape(2, 3, 2)
    shift, scale = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(modulate(x, 0 * shift, 0 * scale), x)
    expected = [[1, 4], [3, 8], [5, 12]], [[21, 32], [27, 40], [33, 48]]
    np.testing.assert_array_equal(modulate(x, shift, scale), expected)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_dense(shape: tuple[int, ...]) -> None:
    layer = Dense(5, 7, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(7.0)
    x = np.random.default_rng(0).normal(size=shape).astype("f4")
    expected = x @ np.asarray(layer.kernel[...]) + np.arange(7.0)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_dense_computes_in_its_dtype_and_stores_float32() -> None:
    layer = Dense(4, 4, use_bias=False, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert layer.bias is None and layer.kernel[...].dtype == jnp.float32
    assert layer(jnp.ones((2, 4))).dtype == jnp.bfloat16


def test_xavier_uniform_takes_given_fans() -> None:
    bound = np.sqrt(6 / (64 + 192))
    draw = np.abs(xavier_uniform(64, 192)(jax.random.key(0), (64, 64)))
    assert 0.99 * bound < draw.max() <= bound
    assert draw.mean() == pytest.approx(bound / 2, rel=0.05)


def test_mlp_uses_the_tanh_gelu() -> None:
    """At 1: tanh form 0.841192, exact form 0.841345."""
    mlp = Mlp(1, 1, dtype="float32", rngs=nnx.Rngs(0))
    mlp.fc1.kernel[...] = mlp.fc2.kernel[...] = jnp.ones((1, 1))
    assert mlp(jnp.ones((1,)))[0] == pytest.approx(0.841192, abs=1e-5)


def test_label_embedder() -> None:
    table = LabelEmbedder(3, 4, dtype="bfloat16", rngs=nnx.Rngs(0))
    out = table(jnp.array([2, 0, 2]))
    assert out.dtype == jnp.bfloat16
    rows = table.embedding[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(out, "f4"), np.asarray(rows, "f4")[[2, 0, 2]])
