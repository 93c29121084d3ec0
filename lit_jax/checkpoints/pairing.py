"""Pairing of torch keys with parameters: a key table applied to one configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flax import traverse_util

from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.keymap.rows import TRANSFORMS, Layout, Row, Shape
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import NetworkConfig


class Tensor(Protocol):
    """Tensor of a state dict: the shape now, the numbers on `np.asarray`."""

    @property
    def shape(self) -> Shape: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...


StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Slot:
    """Parameters of one torch key.

    `leaves` are the paths of its equal parts, `index` the place on their stacked axis (None: they
    are not stacked), `part_shape` the torch shape of each part. A slot with `copy_of` holds a
    second copy of that other key's tensor; an optional one may be missing.
    """

    row: Row
    leaves: tuple[str, ...]
    index: int | None
    part_shape: Shape
    copy_of: str | None = None
    optional: bool = False

    @property
    def source_shape(self) -> Shape:
        return (self.part_shape[0] * len(self.leaves), *self.part_shape[1:])

    def __str__(self) -> str:
        where = "" if self.index is None else f"[{self.index}]"
        return ", ".join(f"{leaf}{where}" for leaf in self.leaves)


def layout_named(config: NetworkConfig, name: str) -> Layout:
    """Return the layout `name` of `config`; ValueError that lists the ones which can hold it."""
    fitting = layouts_for(config)
    for layout in fitting:
        if layout.name == name:
            return layout
    what = f"a {config.family} model"
    if mixer := getattr(config, "mixer", ""):
        what += f" with the {mixer!r} mixer"
    if not fitting:
        raise ValueError(f"no layout can hold {what}: {config}")
    names = " or ".join(repr(layout.name) for layout in fitting)
    raise ValueError(f"layout {name!r} cannot hold {what}; use layout {names}")


def abstract_leaves(config: NetworkConfig) -> dict[str, Any]:
    """Return path -> shape and dtype of every parameter."""
    return traverse_util.flatten_dict(abstract_params(config), sep="/")


def slots(layout: Layout, config: NetworkConfig) -> dict[str, Slot]:
    """Return every key that a checkpoint of `config` has in `layout`, except the droppable ones.

    Parameters that the layout omits need none. Raises ValueError when the layout has no row for
    another parameter.
    """
    leaves = abstract_leaves(config)
    found: dict[str, Slot] = {}
    covered: set[str] = set()
    for row in layout.rows:
        for targets, numbers in _matches(row, leaves):
            covered.update(targets)
            shape = leaves[targets[0]].shape
            part = TRANSFORMS[row.transform].source_shape(
                shape[1:] if row.stacked else shape, config
            )
            found |= _slots_of(row, targets, numbers, shape, part, config)
    if uncovered := sorted(set(leaves) - covered - set(layout.omits)):
        raise ValueError(
            f"layout {layout.name!r} has no row for the parameters {', '.join(uncovered)}"
        )
    return found


def unwritten(config: NetworkConfig, layout: Layout) -> list[str]:
    """Return parameters of `config` that an exported file of `layout` does not hold."""
    return sorted(set(layout.omits) & set(abstract_leaves(config)))


def _matches(
    row: Row, leaves: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], dict[str, int]]]:
    """Yield existing leaves that the row's targets stand for, and the numbers of its
    placeholders."""
    if "{" not in row.targets[0]:
        if all(target in leaves for target in row.targets):
            yield row.targets, {}
        return
    pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(row.targets[0])))
    for path in leaves:
        if match := pattern.fullmatch(path):
            numbers = {name: int(value) for name, value in match.groupdict().items()}
            targets = tuple(target.format(**numbers) for target in row.targets)
            if all(target in leaves for target in targets):
                yield targets, numbers


def _slots_of(
    row: Row,
    targets: tuple[str, ...],
    numbers: dict[str, int],
    shape: Shape,
    part: Shape,
    config: NetworkConfig,
) -> dict[str, Slot]:
    if row.stacked:
        blocks = list(row.blocks(config)) if row.blocks else list(range(shape[0]))
        return {
            row.source.format(block=block, **numbers): Slot(row, targets, index, part)
            for index, block in enumerate(blocks)
        }
    first = row.source.format(block=0, **numbers)
    found = {first: Slot(row, targets, None, part)}
    if row.repeated:
        for block in range(1, config.depth):  # type: ignore[union-attr]
            key = row.source.format(block=block, **numbers)
            found[key] = Slot(row, targets, None, part, copy_of=first)
    for copy in row.copies:
        key = copy.format(**numbers)
        found[key] = Slot(row, targets, None, part, copy_of=first, optional=True)
    return found


def structural_problems(
    state: StateDict, expected: Mapping[str, Slot], layout: Layout
) -> list[str]:
    """Return keys and shapes that do not fit, before a single number is read."""
    problems = []
    for key in state:
        if key not in expected and layout.reason_to_drop(key) is None:
            shape = tuple(state[key].shape)
            problems.append(f"unused key {key!r} {shape}: the model has no place for it")
    for key, slot in expected.items():
        if key not in state:
            if not slot.optional and not stand_in(key, state, expected):
                wanted = f"key {key!r} {slot.source_shape}"
                problems.append(f"unfilled parameter {slot}: {wanted} is missing")
        elif tuple(state[key].shape) != slot.source_shape:
            problems.append(
                f"shape of {key!r}: checkpoint {tuple(state[key].shape)},"
                f" model {slot.source_shape} ({slot})"
            )
    return problems


def stand_in(key: str, state: StateDict, expected: Mapping[str, Slot]) -> str | None:
    """Return a present copy that may take the place of the missing `key`."""
    for other, slot in expected.items():
        if slot.copy_of == key and slot.optional and other in state:
            return other
    return None
