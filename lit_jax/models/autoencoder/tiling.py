"""A function of images applied tile by tile, so that the largest array it sees is one tile.

Lengths are in steps: the coarser of the pixel grids before and after the function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all) after every tile."""


def tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return where tiles begin along one axis: neighbours share `overlap` steps, the last tile ends
    at the border and may share more. One tile that is as long as the axis if the axis is no longer.
    """
    if length <= tile:
        return (0,)
    return (*range(0, length - tile, tile - overlap), length - tile)


def tile_weights(length: int, tile: int, overlap: int, scale: int) -> dict[int, np.ndarray]:
    """Return start -> share of that tile in the result, float32, `scale` numbers per step.

    The share grows linearly over the first `overlap` steps and falls over the last ones, except at
    the borders of the image; at every place the shares of all tiles sum to 1.
    """
    starts, tile = tile_starts(length, tile, overlap), min(length, tile)
    rising = np.minimum((np.arange(tile * scale) + 0.5) / max(overlap * scale, 0.5), 1.0)
    shares = {}
    total = np.zeros(length * scale)
    for start in starts:
        share = np.ones(tile * scale)
        share *= rising if start > 0 else 1.0
        share *= rising[::-1] if start + tile < length else 1.0
        total[start * scale : (start + tile) * scale] += share
        shares[start] = share
    return {
        start: (share / total[start * scale : (start + tile) * scale]).astype(np.float32)
        for start, share in shares.items()
    }


def check_tiles(tile: int, overlap: int) -> None:
    """Raise ValueError for a tile or an overlap that make no sense."""
    if tile < 1 or not 0 <= overlap < tile:
        raise ValueError(
            f"tile {tile} with overlap {overlap}; the tile must be at least 1 and the overlap"
            " at least 0 and smaller than the tile"
        )


def in_tiles(
    function: Callable[[Any], Any],
    x_BxHxWxC: Any,
    *,
    tile: int,
    overlap: int,
    scale_in: int = 1,
    scale_out: int = 1,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return function(x) computed on overlapping square tiles of `tile` steps, blended linearly.

    x [B, H scale_in, W scale_in, C] -> float32 numpy [B, H scale_out, W scale_out, C'], where
    `function` does the same for a tile. All tiles have one shape, so that a jitted function is
    compiled once; where the image is shorter than a tile, so is the tile. Runs on the host: the
    result never is on the device as a whole. Raises what `check_tiles` raises.
    """
    check_tiles(tile, overlap)
    height, width = (side // scale_in for side in x_BxHxWxC.shape[1:3])
    rows, columns = (tile_weights(side, tile, overlap, scale_out) for side in (height, width))
    result: np.ndarray | None = None
    places = list(itertools.product(rows, columns))
    for done, (top, left) in enumerate(places, 1):
        here = x_BxHxWxC[
            :, _span(top, min(tile, height), scale_in), _span(left, min(tile, width), scale_in)
        ]
        part = np.asarray(function(here), np.float32)
        if result is None:
            shape = (part.shape[0], height * scale_out, width * scale_out, part.shape[3])
            result = np.zeros(shape, np.float32)
        share_HxW = rows[top][:, None] * columns[left]
        where = (_span(top, min(tile, height), scale_out), _span(left, min(tile, width), scale_out))
        result[:, *where] += part * share_HxW[..., None]
        if progress is not None:
            progress(done, len(places))
    assert result is not None
    return result


def _span(start: int, length: int, scale: int) -> slice:
    return slice(start * scale, (start + length) * scale)
