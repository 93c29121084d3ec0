"""Grids of images as PNG files."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from lit_jax.data.transforms import to_uint8
from lit_jax.storage.png import grid_of, write_png

GRID = "grid.png"
GRID_COUNT, GRID_COLUMNS = 100, 10


def save_grid(images_NxHxWxC: np.ndarray, path: Path) -> np.ndarray | None:
    """Write images in [-1, 1] as a grid, uint8 [height, width, 1 or 3], on process 0, and return
    it; None, and no file, for images that are not finite.

    Of latents the first three channels are shown, or the first of two.
    """
    if not np.all(np.isfinite(images_NxHxWxC)):
        return None
    shown = 3 if images_NxHxWxC.shape[-1] > 2 else 1
    grid = grid_of(to_uint8(images_NxHxWxC[..., :shown]), columns=GRID_COLUMNS)
    if jax.process_index() == 0:
        write_png(path, grid)
    return grid
