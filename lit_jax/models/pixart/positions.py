"""Position codes of a PixArt. numpy only."""

from __future__ import annotations

import numpy as np

from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.position_tables import scaled_position_table


def position_table(config: PixArtConfig, grid: tuple[int, int] | None = None) -> np.ndarray:
    """Return the position code of a token grid, of the nominal one by default: float32 [N, D]."""
    grid = config.grid if grid is None else grid
    return scaled_position_table(grid, config.hidden_size, config.grid, config.pe_interpolation)
