"""Large images in tiles: the tiles themselves, and an autoencoder run on them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_jax.models.autoencoder.blocks import Decoder, Encoder, nearest_twice
from lit_jax.models.autoencoder.tiling import in_tiles, tile_starts, tile_weights
from lit_jax.models.functional import with_params
from support.autoencoder_cases import (
    decode,
    encode,
    golden_model,
    in_bfloat16,
    normal,
    params_of,
    tiny,
)
from support.golden_cases import relative_error

# --- tiles ---


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 90), st.integers(1, 30), st.data())
def test_tiles_cover_an_axis(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    scale = data.draw(st.integers(1, 3))
    starts = tile_starts(length, tile, overlap)
    size = min(tile, length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    assert all(a < b <= a + size - overlap for a, b in zip(starts, starts[1:], strict=False))
    total = np.zeros(length * scale)
    for start, share in tile_weights(length, tile, overlap, scale).items():
        assert share.dtype == np.float32 and share.shape == (size * scale,)
        assert np.all(share > 0)
        total[start * scale : (start + size) * scale] += share
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_shares_change_linearly() -> None:
    first, second = tile_weights(10, 6, 2, 2).values()
    np.testing.assert_allclose(first, [1] * 8 + [0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(second, first[::-1])


@pytest.mark.parametrize(("height", "width"), [(5, 5), (8, 8), (9, 23), (31, 8), (3, 40), (24, 17)])
def test_local_functions_are_exact(height: int, width: int) -> None:
    """Any size, also one that is no multiple of the tile, in both directions of resolution."""
    x = normal(0, 2, height, width, 3)
    twice = x.repeat(2, axis=1).repeat(2, axis=2)
    enlarged = in_tiles(jax.jit(nearest_twice), x, tile=8, overlap=3, scale_out=2)
    np.testing.assert_allclose(enlarged, twice, atol=1e-6)
    reduced = in_tiles(lambda part: part[:, ::2, ::2], twice, tile=8, overlap=3, scale_in=2)
    np.testing.assert_allclose(reduced, x, atol=1e-6)


def test_tiles_have_one_shape_and_are_reported() -> None:
    seen: list[tuple[int, ...]] = []
    progress: list[tuple[int, int]] = []

    def function(part: Any) -> Any:
        assert len(progress) == len(seen), "one tile after another"
        seen.append(part.shape)
        return part

    x = np.ones((2, 9, 23, 1), np.float32)
    in_tiles(function, x, tile=8, overlap=2, progress=lambda *done: progress.append(done))
    assert seen == [(2, 8, 8, 1)] * 8
    assert progress == [(n, 8) for n in range(1, 9)]


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (8, 8), (8, -1)])
def test_impossible_tiles(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=rf"tile {tile} with overlap {overlap}; the tile must be"):
        tiny().decode_tiled(jnp.zeros((1, 16, 16, 4)), tile, overlap)


# --- the autoencoder in tiles ---


def test_one_tile_is_the_whole_image() -> None:
    """Up to the order of sums: the program is cut in two."""
    model = golden_model("vae_sd")
    z, image = normal(0, 2, 6, 9, 4), normal(1, 2, 12, 18, 3)
    assert relative_error(model.decode_tiled(z, 9, 4), decode(model, z)) < 1e-5
    assert relative_error(model.encode_tiled(image, 9, 4), encode(model, image)) < 1e-5


def deviation(value: Any, expected: Any) -> float:
    """Root mean square difference over the standard deviation of what is expected."""
    value, expected = np.asarray(value), np.asarray(expected)
    return float(np.sqrt(np.mean(np.square(value - expected))) / np.std(expected))


@pytest.mark.parametrize("case", ["vae_sd", "vae_sdxl"])
def test_many_tiles_are_close(case: str) -> None:
    """Measured 0.038 and 0.054, and 0.15 and 0.16 for adjacent tiles. The weights are random; the
    statistics of trained ones may change less from tile to tile, or more."""
    model = golden_model(case)
    z = normal(0, 1, 40, 56, 4)
    whole = decode(model, z)
    adjacent, overlapping = (
        deviation(model.decode_tiled(z, 24, overlap), whole) for overlap in (0, 8)
    )
    assert overlapping < 0.1
    assert overlapping < 0.7 * adjacent


def test_encoding_in_tiles_is_close() -> None:
    """Measured 0.027."""
    model = golden_model("vae_sd")
    image = normal(1, 1, 80, 112, 3)
    assert deviation(model.encode_tiled(image, 24, 8), encode(model, image)) < 0.06


def test_tiles_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all tiles of all images, also of another model of the same configuration."""
    traces: list[tuple[int, ...]] = []
    ascend = Decoder.ascend

    def counted(self: Decoder, x_BxHxWxC: jax.Array) -> jax.Array:
        traces.append(x_BxHxWxC.shape)
        return ascend(self, x_BxHxWxC)

    monkeypatch.setattr(Decoder, "ascend", counted)
    model = tiny()
    other = with_params(model.config, jax.tree.map(np.negative, params_of(model)))
    for net, size in ((model, (11, 13)), (model, (20, 7)), (other, (11, 13))):
        image = net.decode_tiled(normal(0, 1, *size, 4), 7, 2)
        assert image.shape == (1, 2 * size[0], 2 * size[1], 3)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
    assert traces == [(1, 7, 7, 8)]


def test_bfloat16_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features put together in float32 go on in the dtype of the model."""
    seen: list[Any] = []
    finish = Encoder.finish

    def watched(self: Encoder, x_BxHxWxC: jax.Array) -> jax.Array:
        seen.append(x_BxHxWxC.dtype)
        return finish(self, x_BxHxWxC)

    monkeypatch.setattr(Encoder, "finish", watched)
    half = in_bfloat16(tiny())
    image = normal(1, 1, 12, 18, 3)
    moments = half.encode_tiled(image, 9, 2)
    assert seen == [jnp.bfloat16]
    assert moments.dtype == np.float32
    assert deviation(moments, encode(half, image)) < 0.01
