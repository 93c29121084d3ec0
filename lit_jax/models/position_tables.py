"""Fixed sine-cosine position tables of DiT and PixArt. numpy only."""

from __future__ import annotations

import numpy as np


def sincos_table(rows_R: np.ndarray, columns_C: np.ndarray, width: int) -> np.ndarray:
    """Return sine-cosine code of every (row, column) position: float32 [R * C, width].

    Row-major tokens; the first half of the channels encodes the column, the second half the row;
    each half is [sin, cos]. float64 mathematics, cast at the end.
    """
    rows, columns = np.meshgrid(rows_R, columns_C, indexing="ij")
    omega = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(positions: np.ndarray) -> np.ndarray:
        angles = positions.reshape(-1, 1).astype(np.float64) * omega
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)


def sincos_position_table(grid: tuple[int, int], width: int) -> np.ndarray:
    """Return the fixed two-dimensional table of DiT, positions 0, 1, ...: float32 [rows * columns,
    width]."""
    return sincos_table(np.arange(grid[0]), np.arange(grid[1]), width)


def scaled_position_table(
    grid: tuple[int, int], width: int, base: tuple[int, int], interpolation: float
) -> np.ndarray:
    """Return the fixed two-dimensional table of PixArt: float32 [rows * columns, width].

    Token i of n along an axis stands at i / (n / base) / interpolation, so that a grid of any size
    and shape spans [0, base / interpolation). float32 in this order of divisions, as upstream.
    """

    def positions(tokens: int, nominal: int) -> np.ndarray:
        ratio = np.float32(tokens / nominal)
        return np.arange(tokens, dtype=np.float32) / ratio / np.float32(interpolation)

    rows, columns = (positions(n, b) for n, b in zip(grid, base, strict=True))
    return sincos_table(rows, columns, width)
