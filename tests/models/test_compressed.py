"""Key/value compression: the four samplings by hand, and attention that uses them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models.attention.compressed import SAMPLINGS, ConvCompression, PatchFilter
from lit_jax.models.functional import abstract_params
from lit_jax.models.pixart.config import KVCompressConfig
from support.attention_cases import random_like
from support.golden_cases import relative_error
from support.pixart_cases import batch, filled, forward, tiny


def numbered(rows: int, columns: int) -> np.ndarray:
    """Tokens whose one channel is their number, row-major: [1, N, 1]."""
    return np.arange(rows * columns, dtype=np.float32).reshape(1, -1, 1)


@pytest.mark.parametrize(
    ("sampling", "grid", "kept"),
    [
        ("ave", (4, 6), [0, 2, 4, 12, 14, 16]),
        ("ave", (5, 5), [0, 2, 10, 12]),  # the last row and column are cut off
        ("uniform", (4, 6), [0, 2, 4, 12, 14, 16]),
        ("uniform", (3, 5), [0, 2, 4, 10, 12, 14]),
        ("uniform_every", (2, 4), [0, 2, 4, 6]),
        ("uniform_every", (3, 3), [0, 2, 4, 6, 8]),
    ],
)
def test_samplings(sampling: str, grid: tuple[int, int], kept: list[int]) -> None:
    out = SAMPLINGS[sampling](jnp.asarray(numbered(*grid)), grid, 2)
    assert out.ravel().tolist() == kept


def test_filters_by_hand() -> None:
    """Channel c of a 3 x 3 patch is weighted by filter c; what is left of the grid is cut off."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 6, 5)).astype("f4")
    kernel, bias = rng.normal(size=(3, 3, 5)).astype("f4"), rng.normal(size=5).astype("f4")
    module = filled(lambda: PatchFilter(5, 3), {"kernel": kernel, "bias": bias})
    out = np.asarray(module(x.reshape(2, 42, 5), (7, 6))).reshape(2, 2, 2, 5)
    for row in (0, 1):
        for column in (0, 1):
            patch = x[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            expected = (patch * kernel).sum(axis=(1, 2)) + bias
            np.testing.assert_allclose(out[:, row, column], expected, rtol=1e-5, atol=1e-5)


def test_filters_equal_a_grouped_convolution() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 4, 8, 6)).astype("f4")
    kernel = rng.normal(size=(2, 2, 6)).astype("f4")
    module = filled(lambda: PatchFilter(6, 2), {"kernel": kernel, "bias": np.zeros(6, "f4")})
    expected = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    out = module(x.reshape(1, 32, 6), (4, 8))
    assert relative_error(out, np.asarray(expected).reshape(1, 8, 6)) < 1e-6


def test_a_new_compression_is_the_normalised_average() -> None:
    x = np.random.default_rng(2).normal(size=(2, 16, 8)).astype("f4")
    out = ConvCompression(8, 2)(x, (4, 4))
    mean = x.reshape(2, 2, 2, 2, 2, 8).mean(axis=(2, 4)).reshape(2, 4, 8)
    centred = mean - mean.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-5)
    assert relative_error(out, expected) < 1e-5
    low = ConvCompression(8, 2)(jnp.asarray(x, jnp.bfloat16), (4, 4))
    assert low.dtype == jnp.bfloat16 and relative_error(low.astype("f4"), expected) < 0.02


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samplings_have_no_parameters(sampling: str) -> None:
    config = tiny(kv_compress_config=KVCompressConfig(sampling, 2, (0,)))
    assert "kv_compress" not in abstract_params(config)
    params = random_like(abstract_params(config))
    plain = forward(tiny())(params, *batch(tiny()))
    assert relative_error(forward(config)(params, *batch(config)), plain) > 1e-3


def test_each_layer_has_its_own_filters() -> None:
    """Filter n belongs to the n-th compressed layer, whatever layers lie between."""
    config = tiny(depth=4, kv_compress_config=KVCompressConfig("conv", 2, (0, 2, 3)))
    params = random_like(abstract_params(config))
    assert params["kv_compress"]["conv"]["kernel"].shape == (3, 2, 2, 24)
    out = forward(config)(params, *batch(config))

    def only(layer: int, place: int) -> np.ndarray:
        """All attention but that of `layer` is silenced, so that the filters of `place` count if
        and only if they are its own."""
        table = np.array(params["blocks"]["scale_shift_table"])
        gates: Any = [n for n in range(4) if n != layer]
        table[gates, 2] = 0
        t_block = jax.tree.map(np.array, params["t_block"])
        for leaf in t_block.values():
            leaf[..., 48:72] = 0
        kv = jax.tree.map(np.array, params["kv_compress"])
        kv["conv"]["kernel"][place] += 1
        changed = dict(params, blocks=dict(params["blocks"], scale_shift_table=table))
        base = forward(config)(changed | {"t_block": t_block}, *batch(config))
        moved = forward(config)(changed | {"t_block": t_block, "kv_compress": kv}, *batch(config))
        return np.abs(np.asarray(moved - base)).max()

    assert np.isfinite(out).all()
    for layer, own in ((0, 0), (2, 1), (3, 2)):
        for place in range(3):
            assert (only(layer, place) > 1e-4) == (place == own), (layer, place)
    assert only(1, 0) == 0
