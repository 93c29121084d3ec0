"""Key tables between PyTorch checkpoints and the parameter trees of this package. numpy only."""

from __future__ import annotations

from collections.abc import Collection

from lit_jax.keymap.rows import Layout
from lit_jax.models.registry import FAMILIES, NetworkConfig

LAYOUTS: tuple[Layout, ...] = tuple(lay for family in FAMILIES for lay in family.layouts)

# Layouts that are folders with a config.json, and layouts that only old files have.
HUB_LAYOUTS = ("diffusers", "transformers")
IMPORT_ONLY = ("diffusers-old",)
EXPORT_LAYOUTS = tuple(dict.fromkeys(lay.name for lay in LAYOUTS if lay.name not in IMPORT_ONLY))


def layouts_for(config: NetworkConfig) -> tuple[Layout, ...]:
    """Return the layouts that can hold `config`."""
    return tuple(lay for lay in LAYOUTS if isinstance(config, lay.config) and lay.holds(config))


def layout_of(keys: Collection[str]) -> Layout:
    """Return the layout of a state dict, by its marks.

    Raises ValueError naming what was looked for, when there is none or more than one.
    """
    found = [layout for layout in LAYOUTS if layout.recognises(keys)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{lay.name} ({lay.marks[0]!r})" for lay in found)
        raise ValueError(f"the checkpoint has keys of more than one layout: {names}")
    kinds = {f"{lay.marks[0]} ({lay.config.family})" for lay in LAYOUTS}
    sample = ", ".join(sorted(keys)[:4])
    raise ValueError(
        f"not a checkpoint of a known layout: its {len(keys)} keys start with"
        f" {sample or 'nothing'}; looked for one of {', '.join(sorted(kinds))}"
    )
