"""Key tables between PyTorch checkpoints and the parameter trees of this package. numpy only."""

from __future__ import annotations

from collections.abc import Collection

from lit_jax.config import NetworkConfig
from lit_jax.weights.tables import dit
from lit_jax.weights.tables.rows import TRANSFORMS, Layout, Row, Shape, Transform

__all__ = [
    "LAYOUTS",
    "TRANSFORMS",
    "Layout",
    "Row",
    "Shape",
    "Transform",
    "layout_of",
    "layouts_for",
]

LAYOUTS: tuple[Layout, ...] = (*dit.LAYOUTS,)


def layouts_for(config: NetworkConfig) -> tuple[Layout, ...]:
    """The layouts that can hold `config`."""
    return tuple(lay for lay in LAYOUTS if isinstance(config, lay.config) and lay.holds(config))


def layout_of(keys: Collection[str]) -> Layout:
    """The layout of a state dict, by its marks.

    Raises ValueError naming what was looked for, when there is none or more than one.
    """
    found = [layout for layout in LAYOUTS if layout.recognises(keys)]
    if len(found) == 1:
        return found[0]
    wanted = ", ".join(f"{lay.name} ({lay.marks[0]!r})" for lay in LAYOUTS)
    sample = ", ".join(sorted(keys)[:4])
    raise ValueError(
        f"not a checkpoint of a known layout: none of the keys of {wanted} decides among its"
        f" {len(keys)} keys, which start with {sample or 'nothing'}"
    )
