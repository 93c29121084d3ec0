"""Grids and comparison figures: right pixels, right layout, same bytes every time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lit_jax.storage import png as images


def _tiles(count: int, channels: int = 1) -> np.ndarray:
    values = np.arange(count, dtype=np.uint8)[:, None, None, None] + 10
    return np.broadcast_to(values, (count, 8, 8, channels)).copy()


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_pixel(channels):
    tiles = _tiles(5, channels)
    tiles[3, 0, 7] = 200
    grid = images.grid_of(tiles, columns=3, scale=2, gap=1)
    assert grid.shape == (2 * 17 + 1, 3 * 17 + 1, channels) and grid.dtype == np.uint8
    assert np.all(grid[1:17, 18:34] == 11)  # second tile of the first row
    assert np.all(grid[18:20, 15:17] == 200)  # the enlarged pixel of tile 3
    assert np.all(grid[18:34, 35:] == 255) and np.all(grid[0] == 255)  # empty place, frame


def test_tiny_images_are_enlarged_unless_told_otherwise():
    assert images.grid_of(_tiles(1), columns=1).shape == (34, 34, 1)
    assert images.grid_of(_tiles(1), columns=1, scale=1).shape == (10, 10, 1)
    assert images.grid_of(np.zeros((1, 64, 64, 3), np.uint8), columns=1).shape == (66, 66, 3)


def test_grid_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="float64; a grid needs uint8"):
        images.grid_of(_tiles(2) / 2.0, columns=1)
    with pytest.raises(ValueError, match="C 1 or 3"):
        images.grid_of(_tiles(2, 4), columns=1)
    with pytest.raises(ValueError, match="columns 0"):
        images.grid_of(_tiles(2), columns=0)


def test_class_rows_orders_by_class():
    labels = np.array([1, 0, 1, 0, 1, 0])
    chosen = images.class_rows(_tiles(6), labels, per_class=2, num_classes=2)
    np.testing.assert_array_equal(chosen[:, 0, 0, 0], [11, 13, 10, 12])
    with pytest.raises(ValueError, match="class 2 has 0 images; a row of 2"):
        images.class_rows(_tiles(6), labels, per_class=2, num_classes=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip_creates_folders_and_leaves_no_temporary(tmp_path, channels):
    path = tmp_path / "a" / "b.png"
    image = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    images.write_png(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(image.shape), image)
    assert [p.name for p in path.parent.iterdir()] == ["b.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_comparison_shows_every_panel_unresampled(tmp_path, channels):
    panels = {"real": _tiles(6, channels), "teacher": _tiles(6, channels) + 100}
    path = tmp_path / "compare.png"
    options = {"columns": 3, "scale": 4, "title": "digits", "captions": {"teacher": "FDD 0.1"}}
    images.comparison_figure(path, panels, **options)
    first = path.read_bytes()
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width = 2 * 36 + 4, 3 * 36 + 4  # tiles of 32 pixels, gaps as wide as one of theirs
    assert picture.shape == (height + 62 + 26, 2 * (width + 14) + 14, 3)
    for left, tiles in ((14, panels["real"]), (14 + width + 14, panels["teacher"])):
        shown = picture[62 : 62 + height, left : left + width]
        expected = images.grid_of(tiles, columns=3, scale=4, gap=4).astype(int)
        assert np.abs(shown - expected).max() <= 1
    images.comparison_figure(path, panels, **options)
    assert path.read_bytes() == first


def test_comparison_refuses_unequal_sets_and_stray_captions(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="differ in shape"):
        images.comparison_figure(path, {"a": _tiles(2), "b": _tiles(3)}, columns=1)
    with pytest.raises(ValueError, match=r"captions for \['c'\]"):
        images.comparison_figure(path, {"a": _tiles(2)}, columns=1, captions={"c": "?"})
    with pytest.raises(ValueError, match="at least one"):
        images.comparison_figure(path, {}, columns=1)
    assert list(tmp_path.iterdir()) == []
