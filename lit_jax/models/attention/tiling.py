"""Tiling of a token grid: strips of rows, tiles of columns, and the keys around them.

B batch, N tokens on an R x C grid, H heads, d channels per head, r radius of a window. The grid is
cut into S strips of t rows and T tiles of u columns: Q = t u queries of one tile, y their rows and
x their columns; keys lie in Y rows and X columns around them, K = Y X.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Tiling:
    """Tiling of a token grid. Keys of a strip reach `halo` rows beyond it on either side, those of
    a tile of columns span `X` columns, the border being shifted inwards."""

    grid: tuple[int, int]
    r: int
    t: int
    u: int
    S: int
    T: int
    halo: int
    X: int

    @classmethod
    def of(cls, grid: tuple[int, int], window_size: int) -> Tiling:
        """Return tiles of 8 x 8 queries measured best on a CPU for radii 8 and 16; beyond that,
        halos many times as high as a strip would cost memory. Rows that one strip and its halo
        would span are one strip, which needs no halo."""
        R, C = grid
        reach = window_size - 1
        t = 8 if window_size <= 16 else 16
        if t + 2 * reach >= R:
            t = R
        u = min(C, max(1, min(8, 128 // t)))
        S = -(-R // t)
        halo = min(reach, (S - 1) * t)
        return cls(grid, window_size, t, u, S, -(-C // u), halo, min(u + 2 * reach, C))

    @property
    def Y(self) -> int:
        return self.t + 2 * self.halo

    def first_key(self, tile: jax.Array) -> jax.Array:
        """Return the column where the keys of a tile of columns begin."""
        return jnp.clip(tile * self.u - self.r + 1, 0, self.grid[1] - self.X)

    def mask(self, tile: jax.Array) -> jax.Array:
        """Return bool [S, Q, K]: what the queries of a tile of columns see."""
        y, key_row = np.arange(self.t), np.arange(self.Y) - self.halo
        x = tile * self.u + np.arange(self.u)
        key_column = self.first_key(tile) + np.arange(self.X)
        dy_txY, dx_uxX = jnp.asarray(key_row - y[:, None]), key_column - x[:, None]
        squares_txuxYxX = dy_txY[:, None, :, None] ** 2 + dx_uxX[:, None] ** 2
        row_SxY = jnp.arange(self.S)[:, None] * self.t + key_row
        inside_SxY = (row_SxY >= 0) & (row_SxY < self.grid[0])
        seen = (squares_txuxYxX < self.r**2) & inside_SxY[:, None, None, :, None]
        return seen.reshape(self.S, self.t * self.u, self.Y * self.X)

    def queries(self, q_BxNxHxd: jax.Array) -> jax.Array:
        """Return [T, B, H, S, Q, d], zeros where tiles stick out of the grid."""
        B, _, H, d = q_BxNxHxd.shape
        (R, C), t, u, S, T = self.grid, self.t, self.u, self.S, self.T
        q = q_BxNxHxd.reshape(B, R, C, H, d)
        q = jnp.pad(q, ((0, 0), (0, S * t - R), (0, T * u - C), (0, 0), (0, 0)))
        q = q.reshape(B, S, t, T, u, H, d).transpose(3, 0, 5, 1, 2, 4, 6)
        return q.reshape(T, B, H, S, t * u, d)

    def outputs(self, o_TxBxHxSxQxd: jax.Array) -> jax.Array:
        """Return the way back: [B, N, H, d]."""
        _, B, H, _, _, d = o_TxBxHxSxQxd.shape
        (R, C), t, u, S, T = self.grid, self.t, self.u, self.S, self.T
        o = o_TxBxHxSxQxd.reshape(T, B, H, S, t, u, d).transpose(1, 3, 4, 0, 5, 2, 6)
        return o.reshape(B, S * t, T * u, H, d)[:, :R, :C].reshape(B, R * C, H, d)

    def strips(self, k_BxNxHxd: jax.Array) -> jax.Array:
        """Return keys or values of every strip with its halo: [B, H, S, Y, C, d], zeros beyond the
        grid.

        Only shifts by constants along the axis of strips: where it is split over devices, the
        compiler exchanges the rows of the halos between neighbours and gathers nothing.
        """
        B, _, H, d = k_BxNxHxd.shape
        (R, C), t, S, halo = self.grid, self.t, self.S, self.halo
        k = k_BxNxHxd.reshape(B, R, C, H, d)
        k = jnp.pad(k, ((0, 0), (0, S * t - R), (0, 0), (0, 0), (0, 0)))
        k = k.reshape(B, S, t, C, H, d).transpose(0, 4, 1, 2, 3, 5)
        parts, reach = [], -(-halo // t)
        for shift in range(-reach, reach + 1):
            # The rows of strip s + shift that lie in the halo of strip s.
            first, end = max(0, -halo - shift * t), min(t, t + halo - shift * t)
            before, after = max(0, -shift), max(0, shift)
            rows = jnp.pad(k[:, :, :, first:end], ((0, 0), (0, 0), (before, after), *[(0, 0)] * 3))
            parts.append(rows[:, :, after : after + S])
        return jnp.concatenate(parts, axis=3)
