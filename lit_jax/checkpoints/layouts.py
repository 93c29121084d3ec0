"""Choice of a key table between a PyTorch checkpoint and a parameter tree. numpy only."""

from __future__ import annotations

from collections.abc import Collection

from lit_jax.keymap.rows import Layout
from lit_jax.models.registry import FAMILIES, NetworkConfig, family_of

# Layouts that are folders with a config.json, and layouts that only old files have.
HUB_LAYOUTS = ("diffusers", "transformers")
IMPORT_ONLY = ("diffusers-old",)


def layouts() -> tuple[Layout, ...]:
    """Return the layouts of all families."""
    return tuple(layout for family in FAMILIES for layout in family.layouts)


EXPORT_LAYOUTS = tuple(dict.fromkeys(lay.name for lay in layouts() if lay.name not in IMPORT_ONLY))


def layouts_for(config: NetworkConfig) -> tuple[Layout, ...]:
    """Return the layouts that can hold `config`."""
    return tuple(layout for layout in family_of(config).layouts if layout.holds(config))


def layout_of(keys: Collection[str]) -> Layout:
    """Return the layout of a state dict, by its marks.

    Raises ValueError that names the marks of all layouts when no layout or more than one matches.
    """
    found = [layout for layout in layouts() if layout.recognises(keys)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{lay.name} ({lay.marks[0]!r})" for lay in found)
        raise ValueError(f"the checkpoint has keys of more than one layout: {names}")
    kinds = {f"{lay.marks[0]} ({lay.config.family})" for lay in layouts()}
    sample = ", ".join(sorted(keys)[:4])
    raise ValueError(
        f"not a checkpoint of a known layout: its {len(keys)} keys start with"
        f" {sample or 'nothing'}; looked for one of {', '.join(sorted(kinds))}"
    )
