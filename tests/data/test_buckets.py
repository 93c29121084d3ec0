"""The table of aspect ratios, and which size an image gets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lit_jax.data.buckets import MAX_RATIO, TABLE, nearest, sizes
from lit_jax.data.crop import fill_crop

# The table for 1024, written down once more: ratio, height x width.
PUBLISHED = """
.25 512x2048, .26 512x1984, .27 512x1920, .28 512x1856, .32 576x1792, .33 576x1728, .35 576x1664,
.4 640x1600, .42 640x1536, .48 704x1472, .5 704x1408, .52 704x1344, .57 768x1344, .6 768x1280,
.68 832x1216, .72 832x1152, .78 896x1152, .82 896x1088, .88 960x1088, .94 960x1024, 1.0 1024x1024,
1.07 1024x960, 1.13 1088x960, 1.21 1088x896, 1.29 1152x896, 1.38 1152x832, 1.46 1216x832,
1.67 1280x768, 1.75 1344x768, 2.0 1408x704, 2.09 1472x704, 2.4 1536x640, 2.5 1600x640,
2.89 1664x576, 3.0 1728x576, 3.11 1792x576, 3.62 1856x512, 3.75 1920x512, 3.88 1984x512,
4.0 2048x512
"""


def test_table_is_the_published_one() -> None:
    rows = [row.split() for row in PUBLISHED.replace("\n", " ").split(",")]
    wanted = {float(key): tuple(map(int, size.split("x"))) for key, size in rows}
    assert wanted == TABLE and len(TABLE) == 40
    assert list(TABLE) == sorted(TABLE) and len(set(TABLE.values())) == 40
    # A digit that is wrong in both would show here.
    for key, (height, width) in TABLE.items():
        assert abs(height / width - key) < 0.01, key


def test_512_is_half_of_1024() -> None:
    whole, half = np.array(sizes(1024)), np.array(sizes(512))
    np.testing.assert_array_equal(2 * half, whole)
    assert not (half % 32).any() and not (whole % 64).any()
    assert sizes(512, 32) == sizes(512)


@pytest.mark.parametrize(
    ("resolution", "multiple", "message"),
    [
        (512, 64, "multiples of 64; it must be a multiple of 1024, as 1024$"),
        (264, 16, "resolution 264 has no buckets .* a multiple of 256, as 256 or 512"),
        (500, 1, "a multiple of 16, as 496 or 512"),
        (0, 1, "a multiple of 16, as 16"),
    ],
)
def test_resolutions_without_buckets(resolution: int, multiple: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes(resolution, multiple)


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (100, 100, (512, 512)),
        (1080, 1920, (384, 672)),
        (1920, 1080, (672, 384)),
        (3, 2, (608, 416)),
        (95, 100, (480, 512)),  # 0.95 is nearer to 0.94 than to 1
        (98, 100, (512, 512)),
        (45, 10, (1024, 256)),
        (10, 45, (256, 1024)),
    ],
)
def test_nearest(height: int, width: int, wanted: tuple[int, int]) -> None:
    assert nearest(height, width, 512) == wanted
    assert nearest(height, width, 1024) == (2 * wanted[0], 2 * wanted[1])


def test_every_size_is_its_own_bucket() -> None:
    for height, width in sizes(1024):
        assert nearest(height, width, 1024) == (height, width)


@pytest.mark.parametrize(("height", "width"), [(4501, 1000), (1000, 4501)])
def test_strips_have_no_bucket(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{height} / {width} = .*; it must be within 1 / 4.5"):
        nearest(height, width, 512)
    assert nearest(round(MAX_RATIO * 1000), 1000, 512) == (1024, 256)


# --- cutting ---


def ramp(height: int, width: int) -> Image.Image:
    """Red grows with x, green with y; linear, so that resampling changes values little."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, 0 * x], -1)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "target"),
    [
        (64, 64, (32, 32)),
        (60, 100, (32, 48)),  # width is cut
        (100, 60, (32, 48)),  # height is cut
        (31, 17, (64, 32)),  # enlarged
        (70, 30, (100, 41)),
        (33, 32, (32, 32)),  # cut by one pixel only
    ],
)
def test_fills_the_target_and_keeps_the_centre(
    height: int, width: int, target: tuple[int, int]
) -> None:
    found = fill_crop(ramp(height, width), *target)
    assert found.shape == (*target, 3) and found.dtype == np.uint8
    scale = max(target[0] / height, target[1] / width)
    for axis, size, wanted in ((0, height, target[0]), (1, width, target[1])):
        # The part of the image along this axis that is seen, around its middle.
        seen = wanted / (scale * size)
        line = np.take(found, found.shape[1 - axis] // 2, 1 - axis)[:, 1 - axis].astype(float)
        places = 0.5 + seen * ((np.arange(wanted) + 0.5) / wanted - 0.5)
        inner = slice(wanted // 8, -wanted // 8)
        np.testing.assert_allclose(line[inner], 255 * places[inner], atol=4 + 255 / scale / size)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = ramp(24, 40)
    np.testing.assert_array_equal(fill_crop(image, 24, 40), np.asarray(image))
    with pytest.raises(ValueError, match="mode L; convert it to RGB"):
        fill_crop(image.convert("L"), 8, 8)


def test_tighter_side_is_exact_where_floats_are_not() -> None:
    """width * (height / image height) falls below the width for some sizes."""
    for side in range(1, 200):
        assert fill_crop(Image.new("RGB", (3 * side, 7 * side)), 70, 30).shape == (70, 30, 3)
