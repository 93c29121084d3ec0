"""The centre crop, against a second implementation that was written apart from it, in numpy.

The second one resamples with explicit matrices in floating point, Pillow with integers: a value
in the middle between two levels may be rounded to the other one, and that is all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lit_jax.data import crop
from lit_jax.data.crop import center_crop
from lit_jax.data.sources.image_source import BrokenImage


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: resampling of pure noise would hide a shift."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + y / (5 - c) + rng.uniform(0, 6)) for c in range(3)]
    pixels = 127 + 80 * np.stack(waves, -1) + rng.normal(0, 15, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def cubic(x: float, a: float = -0.5) -> float:
    """The cubic convolution kernel (Keys 1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def box(x: float) -> float:
    return float(-0.5 < x <= 0.5)


def weights(old: int, new: int, kernel: Callable[[float], float], support: float) -> np.ndarray:
    """Weights [new, old] of a filter that is as wide as the pixels of the smaller image. Whole
    pixels are in or out of its window, as in Pillow."""
    ratio, scale = old / new, max(old / new, 1.0)
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * ratio
        low, high = (int(centre + sign * support * scale + 0.5) for sign in (-1, 1))
        for j in range(max(low, 0), min(high, old)):
            matrix[i, j] = kernel((j + 0.5 - centre) * (1 / scale))
        matrix[i] /= matrix[i].sum()
    return matrix


def resampled(
    pixels: np.ndarray,
    height: int,
    width: int,
    kernel: Callable[[float], float],
    support: float,
) -> np.ndarray:
    """Along rows, then along columns, with 8 bits in between."""
    across = weights(pixels.shape[1], width, kernel, support)
    pixels = np.clip(np.floor(np.einsum("nw,hwc->hnc", across, pixels) + 0.5), 0, 255)
    down = weights(pixels.shape[0], height, kernel, support)
    return np.clip(np.floor(np.einsum("nh,hwc->nwc", down, pixels) + 0.5), 0, 255)


def straightforward(pixels: np.ndarray, size: int) -> np.ndarray:
    pixels = pixels.astype(np.float64)
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resampled(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, box, 0.5)
    scale = size / min(pixels.shape[:2])
    height, width = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    pixels = resampled(pixels, height, width, cubic, 2)
    top, left = math.floor((height - size) / 2), math.floor((width - size) / 2)
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (32, 32, 32),  # as it is
        (33, 32, 32),  # cut only
        (32, 37, 32),
        (40, 50, 32),  # reduced
        (20, 27, 32),  # enlarged
        (63, 90, 32),  # one below the first halving
        (64, 64, 32),  # halved once, and done
        (65, 71, 32),  # odd sides: boxes of uneven size
        (201, 130, 32),  # halved twice, then reduced
        (37, 23, 8),
        (9, 20, 8),
        (100, 9, 8),
        (9, 100, 8),
    ],
)
def test_equals_the_straightforward_one(width: int, height: int, size: int) -> None:
    image = random_image(width, height)
    found = center_crop(image, size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    pixels = np.asarray(image)
    wanted = straightforward(pixels, size)
    if height > 8 * width:  # Pillow filters a long column along its columns first
        wanted = straightforward(pixels.transpose(1, 0, 2), size).transpose(1, 0, 2)
    difference = np.abs(found.astype(float) - wanted)
    assert difference.max() <= 1, difference.max()
    assert difference.mean() < 0.001, difference.mean()


def test_known_pixels() -> None:
    """Cut only: the offset of an odd rest is rounded down."""
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    np.testing.assert_array_equal(center_crop(Image.fromarray(pixels), 4), pixels[0:4])
    wide = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    np.testing.assert_array_equal(center_crop(Image.fromarray(wide), 4), wide[:, 0:4])
    # 8 x 8 to 4 x 4 is one halving: means of 2 x 2 blocks.
    block = np.repeat(np.repeat(np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4), 2, 0), 2, 1)
    image = Image.fromarray(np.stack([block] * 3, -1))
    np.testing.assert_array_equal(center_crop(image, 4)[..., 0], block[::2, ::2])


def test_rounding_is_to_even() -> None:
    """6 x 4 to a side of 3: the long side is 4.5, which Python rounds to 4."""
    wide = random_image(6, 4)
    bicubic = wide.resize((4, 3), resample=Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(center_crop(wide, 3), np.asarray(bicubic)[:, :3])


def test_halving_comes_before_bicubic() -> None:
    image = random_image(100, 80)
    straight = image.resize((20, 16), resample=Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(straight)[:, 2:18].astype(int) - center_crop(image, 16)).max() > 2


def test_refuses_other_modes() -> None:
    with pytest.raises(ValueError, match="an image of mode L; convert it to RGB"):
        center_crop(Image.new("L", (9, 9)), 8)


def test_refuses_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop, "MAX_PIXELS", 64 * 8)
    center_crop(Image.new("RGB", (16, 2)), 8)
    with pytest.raises(BrokenImage, match="17 x 2 pixels are too narrow for 8 x 8.* 68 x 8"):
        center_crop(Image.new("RGB", (17, 2)), 8)
