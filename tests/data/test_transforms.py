"""Conversions between stored bytes, uint8 and model range."""

from __future__ import annotations

import numpy as np
import pytest

from lit_jax.data import transforms


def test_to_uint8_truncates_and_clamps_like_the_official_script():
    values = np.array([-1.2, -1.0, -0.997, 0.0, 0.4999, 1.0, 7.0], np.float32)
    # 127.5 x + 128: -25, 0.5, 0.8825, 128, 191.7, 255.5, 1020.5
    np.testing.assert_array_equal(transforms.to_uint8(values), [0, 0, 0, 128, 191, 255, 255])


def test_to_uint8_inverts_to_float_for_every_grey():
    greys = np.arange(256, dtype=np.uint8)
    floats = transforms.to_float(greys)
    assert floats.dtype == np.float32 and floats[0] == -1.0 and floats[255] == 1.0
    np.testing.assert_array_equal(transforms.to_uint8(floats), greys)


def test_to_uint8_refuses_non_finite_pixels():
    with pytest.raises(ValueError, match="2 of 3 pixel values are not finite"):
        transforms.to_uint8([0.0, np.nan, np.inf])
