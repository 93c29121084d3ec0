"""Position scale of a PixArt, from the table that its checkpoint holds."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lit_jax.checkpoints.detect import detect_config
from lit_jax.models.position_tables import scaled_position_table
from lit_jax.models.transformer.positions import interpolation_of
from support.pixart_cases import (
    state_like,
    tiny,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
def test_position_scale_of_a_table(scale: float, dtype: Any) -> None:
    for width, side in ((16, 2), (48, 8), (1152, 4)):
        table = scaled_position_table((side, side), width, (side, side), scale).astype(dtype)
        assert interpolation_of(table) == scale


def test_position_scales_off_the_steps() -> None:
    for scale in (0.3, 1 / 3, 0.1, 4.003):
        table = scaled_position_table((4, 4), 48, (4, 4), scale)
        assert interpolation_of(table) == pytest.approx(scale, rel=1e-5)
    assert interpolation_of(np.zeros((4, 48), np.float32)) is None


def test_widths_that_hold_no_code() -> None:
    for width in (0, 1, 3):
        assert interpolation_of(np.ones((4, width), np.float32)) is None
    assert interpolation_of(np.full((4, 48), np.nan, np.float32)) is None
    state = state_like(tiny())
    tokens = state["pos_embed"].shape[1]
    for width in (2, 48):
        state["pos_embed"] = np.ones((1, tokens, width), np.float32)
        with pytest.raises(ValueError, match=rf"pe_interpolation .pos_embed has .* {width}\)"):
            detect_config(state, None, {"num_heads": 2})


@pytest.mark.parametrize("scale", [1.0, 2.0, 1 / 3, 0.3, 4.003])
@pytest.mark.parametrize("size", [8, 64, (8, 12)])
def test_scale_of_a_whole_table(scale: float, size: Any) -> None:
    config = tiny(input_size=size, pe_interpolation=scale)
    told = {"num_heads": 2} | ({} if size == 8 else {"input_size": size})
    found = detect_config(state_like(config), None, told)
    assert found.pe_interpolation == pytest.approx(scale, rel=1e-5)
    assert found.input_size == size


@pytest.mark.parametrize("size", [8, (8, 12)])
def test_a_table_that_is_none_tells_no_scale(size: Any) -> None:
    """Its second token would: that of noise tells some scale, that of a shuffled table its own."""
    state = state_like(tiny(input_size=size))
    told = {"num_heads": 2, "input_size": size}
    good = state["pos_embed"]
    shuffled = np.concatenate([good[:, :2], good[:, :1:-1]], axis=1)
    late = good.copy()
    late[0, -1, -1] += 0.01
    noise = [np.random.default_rng(seed).standard_normal(good.shape) for seed in range(20)]
    ones = np.ones_like(good)
    for bad in (shuffled, late, ones, *(table.astype(np.float32) for table in noise)):
        state["pos_embed"] = bad
        with pytest.raises(ValueError, match="no position table of any scale") as error:
            detect_config(state, None, told)
        assert str(error.value).endswith("--set pe_interpolation=SIDE_IN_PIXELS/512")
        assert detect_config(state, None, told | {"pe_interpolation": 2}).pe_interpolation == 2
