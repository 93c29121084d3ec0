"""The nominal size, and the position scale of PixArt, of a stored position table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_jax.keymap.shapes import Shapes
from lit_jax.models.position_tables import scaled_position_table

TABLE = "pos_embed"

# pe_interpolation is read off a table and rounded to a whole number, else to a half, ... else to
# 1/64, if that is no further away (relatively) than the type of the table can put it.
_STEPS = (1, 2, 4, 8, 16, 32, 64)
_PRECISION = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}

# Largest difference of a table from the analytic one, per stored dtype: a few units in the last
# place of values up to 1.
POSITION_TOLERANCE = {"float64": 1e-6, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


def read_positions(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return `input_size` of a square token grid and `pe_interpolation`, unless they are told.

    The scale is given only if the whole table is the analytic one of that scale, as far as a grid
    is known to compare it with.
    """
    shape = shapes.keys.get(TABLE)
    if shape is None:
        return {}
    _, tokens, width = shapes.ranked(TABLE, shape, 3)
    hidden, _, patch, _ = shapes.expect("x_embedder/kernel")
    found = square_size(shapes, told)
    stored = shapes.tensors.get(TABLE)
    # Two tokens in a row are needed: the second one says how far apart they stand.
    if "pe_interpolation" in told or stored is None or tokens < 2 or width != hidden:
        return found
    table_NxD = np.asarray(stored)[0]
    scale = interpolation_of(table_NxD)
    grid = _grid(tokens, patch, told)
    # Without a grid, and without a size that was told, the error asks for the size first.
    unknown = grid is None and "input_size" not in told
    if scale is not None and (unknown or (grid is not None and _fits(table_NxD, grid, scale))):
        found["pe_interpolation"] = scale
    return found


def square_size(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return `input_size` of a stored table of a square token grid, unless a size is told."""
    shape = shapes.keys.get(TABLE)
    if shape is None or "input_size" in told:
        return {}
    tokens, patch = shapes.ranked(TABLE, shape, 3)[1], shapes.expect("x_embedder/kernel")[2]
    side = math.isqrt(tokens)
    return {"input_size": side * patch} if side * side == tokens else {}


def interpolation_of(table_NxD: np.ndarray) -> float | None:
    """Return pe_interpolation of a position table of more than one column, stored for its nominal
    grid.

    The second token stands in column 1 / pe_interpolation. Its channels are sine and cosine of that
    times 10000^(-k / (D/4)): the slowest one is unambiguous, and every faster one adds digits. None
    when the code is none of a positive column, or too narrow to be one.
    """
    quarter = table_NxD.shape[1] // 4
    if quarter < 1 or table_NxD.dtype.name not in _PRECISION:
        return None
    code = table_NxD[1].astype(np.float64)
    if not np.isfinite(code).all():
        return None
    angles = np.arctan2(code[:quarter], code[quarter : 2 * quarter])
    omega = 10000.0 ** (-np.arange(quarter) / quarter)
    column = angles[-1] / omega[-1]
    for angle, frequency in zip(angles[-2::-1], omega[-2::-1], strict=True):
        turns = np.round((column * frequency - angle) / (2 * np.pi))
        column = (angle + 2 * np.pi * turns) / frequency
    # A column next to nothing is the numerical zero of a table that is none; 1 / it may overflow.
    if not column > np.finfo(np.float32).tiny:
        return None
    scale = 1 / column
    precision = _PRECISION[table_NxD.dtype.name]
    for stepped in (round(scale * steps) / steps for steps in _STEPS):
        if abs(stepped - scale) < precision * scale:
            return stepped
    return float(f"{scale:.6g}")


def _grid(tokens: int, patch: int, told: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return rows and columns of the stored table: those of the size that was told if they are as
    many tokens, else a square."""
    size = told.get("input_size")
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) == 2 and sides[0] > 0 and all(side % patch == 0 for side in sides):
        rows, columns = (side // patch for side in sides)
        if rows * columns == tokens:
            return rows, columns
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None


def _fits(table_NxD: np.ndarray, grid: tuple[int, int], scale: float) -> bool:
    """Return whether a table is the analytic one of its grid and scale."""
    if table_NxD.shape[1] % 4:
        return False
    analytic = scaled_position_table(grid, table_NxD.shape[1], grid, scale)
    tolerance = POSITION_TOLERANCE[table_NxD.dtype.name]
    if not (scale * _STEPS[-1]).is_integer():
        # As exact as the second token tells it, and six digits: what the last one makes of that.
        tolerance += max(grid) * (tolerance + 5e-6 / scale)
    return bool(np.abs(table_NxD.astype(np.float32) - analytic).max() <= tolerance)


def why_no_size(shapes: Shapes) -> str:
    table = shapes.keys.get(TABLE)
    return "there is no pos_embed" if table is None else f"pos_embed has shape {table}"


def why_no_scale(shapes: Shapes) -> str:
    table = shapes.keys.get(TABLE)
    if table is None or table[1] < 2 or table[2] != shapes.expect("x_embedder/kernel")[0]:
        return why_no_size(shapes)
    return "pos_embed is no position table of any scale"
