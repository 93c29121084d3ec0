"""The shapes of a state dict, asked for by parameter path whatever its layout calls them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lit_jax.keymap.rows import Layout, Shape


@dataclass(frozen=True)
class Shapes:
    """Torch shapes by parameter path; `tensors` has the numbers, for the few that matter here."""

    layout: Layout
    keys: Mapping[str, Shape]
    tensors: Mapping[str, Any] = field(default_factory=dict)

    def key(self, target: str, **numbers: int) -> str:
        """Return the torch key of a parameter, whether or not it is there."""
        key = self.layout.source_of(target, **numbers)
        if key is None:
            raise ValueError(f"layout {self.layout.name!r} has no row for {target!r}")
        return key

    def of(self, target: str, **numbers: int) -> Shape | None:
        """Return Torch shape of the tensor that holds `target` (of block 0 unless `block=` says),
        None if there is none, or no row for it. A fused tensor is given whole."""
        key = self.layout.source_of(target, **numbers)
        return None if key is None else self.keys.get(key)

    def expect(self, target: str, **numbers: int) -> Shape:
        """Return the shape of a tensor that has to be there; ValueError when it is not."""
        shape = self.of(target, **numbers)
        if shape is None:
            raise ValueError(f"key {self.key(target, **numbers)!r} is missing")
        return shape

    def ranked(self, name: str, shape: Shape, rank: int) -> Shape:
        """Return `shape`, which has to have `rank` axes, none of them empty; `name` is a path or
        key."""
        key = self.layout.source_of(name) or name
        if len(shape) != rank:
            raise ValueError(f"{key!r} has shape {shape}; {rank} axes are needed")
        if 0 in shape:
            raise ValueError(f"{key!r} has shape {shape}; no axis may be empty")
        return shape

    def __contains__(self, target: str) -> bool:
        return self.of(target) is not None

    def count(self, target: str, placeholder: str = "block", **numbers: int) -> int:
        """Return how many of 0, 1, ... have this parameter, without a gap; later ones are strays,
        and reported as unused keys."""
        return next(
            n for n in itertools.count() if self.of(target, **(numbers | {placeholder: n})) is None
        )


@dataclass(frozen=True)
class Detector:
    """Reader of the architecture of one kind of network.

    required    parameters that have to be there -> number of axes of their torch tensor
    read        (shapes, told) -> the fields that shapes decide, `told` being what the user, the
                file or its config.json say; ValueError for nonsense
    asks        fields that shapes may leave open -> (why, given the shapes, as a clause; example
                for --set)
    settle      (shapes, told) -> told, where a word means something else for this checkpoint
    from_hub    the config.json beside a Hugging Face file -> fields; ValueError when it describes
                a network that this package does not have
    assumed     fields that `from_hub` fills in when their entry of config.json, the value here, is
                absent; anybody may overrule those
    """

    required: Mapping[str, int]
    read: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    asks: Mapping[str, tuple[Callable[[Shapes], str], str]]
    from_hub: Callable[[Mapping[str, Any]], dict[str, Any]]
    settle: Callable[[Shapes, dict[str, Any]], dict[str, Any]] = lambda shapes, told: told
    assumed: Mapping[str, str] = field(default_factory=dict)


def mlp_ratio(width: int, hidden: int, told: Mapping[str, Any]) -> float:
    """Return a ratio whose product with the hidden size truncates to the stored width; the one that
    was told if it does."""
    if "mlp_ratio" in told and 0 <= hidden * told["mlp_ratio"] - width < 1:
        return float(told["mlp_ratio"])
    ratio = width / hidden
    if int(hidden * ratio) != width:
        ratio = float(np.nextafter(ratio, np.inf))
    return ratio
