"""State dict <-> parameter tree, strictly: every key and every leaf is accounted for.

Parameters are nested dicts of float32 numpy arrays with the blocks stacked on axis 0; a state dict
maps official torch keys to arrays in torch layout. The pairing is the tables' alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from flax import traverse_util

from lit_jax.config import DiTConfig
from lit_jax.models.layers import sincos_position_table
from lit_jax.models.zoo import Params, abstract_params
from lit_jax.weights.tables import DROPPABLE, LAYOUTS, MIXER_LAYOUTS, TRANSFORMS, Row, Shape

# Largest accepted difference of a stored position table from the analytic one, per stored dtype:
# a few units in the last place of values up to 1.
POSITION_TOLERANCE = {"float64": 1e-6, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


class Tensor(Protocol):
    """What a state dict holds: a shape now, the numbers on `np.asarray`."""

    @property
    def shape(self) -> Shape: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...


StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Slot:
    """Where one torch key lands: a table row, the block number, and the shapes on both sides."""

    row: Row
    block: int | None
    part_shape: Shape  # torch shape of each of the row's equal parts

    @property
    def source_shape(self) -> Shape:
        return (self.part_shape[0] * len(self.row.targets), *self.part_shape[1:])

    def __str__(self) -> str:
        where = "" if self.block is None else f"[{self.block}]"
        return ", ".join(f"{target}{where}" for target in self.row.targets)


@dataclass(frozen=True)
class ImportReport:
    """What happened to a state dict: keys used, keys dropped with the reason, scalars filled."""

    used: int
    dropped: dict[str, str]
    parameters: int


def slots(layout: str, config: DiTConfig) -> dict[str, Slot]:
    """Every key that a checkpoint of `config` has in `layout`, except the droppable ones.

    Raises ValueError when the layout cannot hold the mixer, or has no row for a parameter.
    """
    if layout != MIXER_LAYOUTS[config.mixer]:
        raise ValueError(
            f"layout {layout!r} cannot hold a model with the {config.mixer!r} mixer;"
            f" use layout {MIXER_LAYOUTS[config.mixer]!r}"
        )
    leaves = traverse_util.flatten_dict(abstract_params(config), sep="/")
    found: dict[str, Slot] = {}
    covered: set[str] = set()
    for row in LAYOUTS[layout]:
        if any(target not in leaves for target in row.targets):
            continue
        covered.update(row.targets)
        shape = leaves[row.targets[0]].shape
        blocks = range(shape[0]) if row.stacked else (None,)
        part = TRANSFORMS[row.transform].source_shape(
            shape[1:] if row.stacked else shape, config.patch_size
        )
        for block in blocks:
            found[row.source.format(i=block)] = Slot(row, block, part)
    if uncovered := sorted(set(leaves) - covered):
        raise ValueError(f"layout {layout!r} has no row for the parameters {', '.join(uncovered)}")
    return found


def import_params(
    state: StateDict, config: DiTConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[Params, ImportReport]:
    """The parameters of `config` from an official state dict.

    `progress(done, total)` is called after every tensor. Raises one ValueError that lists every
    unused key, unfilled parameter, wrong shape, wrong dtype, non-finite tensor, and a position
    table that is not the analytic one.
    """
    expected = slots(MIXER_LAYOUTS[config.mixer], config)
    problems = _structural_problems(state, expected)
    if problems:
        raise _refusal(problems)
    leaves = {
        path: np.empty(leaf.shape, np.float32)
        for path, leaf in traverse_util.flatten_dict(abstract_params(config), sep="/").items()
    }
    for done, (key, slot) in enumerate(expected.items(), start=1):
        array, problem = _as_float32(key, state[key])
        problems += problem
        parts = np.split(array, len(slot.row.targets))
        for target, part in zip(slot.row.targets, parts, strict=True):
            place = ... if slot.block is None else slot.block
            leaves[target][place] = TRANSFORMS[slot.row.transform].to_param(part)
        if progress is not None:
            progress(done, len(expected))
    dropped = {key: DROPPABLE[key] for key in state if key in DROPPABLE}
    if "pos_embed" in state:
        problems += position_problems(state["pos_embed"], config)
    if problems:
        raise _refusal(problems)
    parameters = sum(leaf.size for leaf in leaves.values())
    params = traverse_util.unflatten_dict(leaves, sep="/")
    return params, ImportReport(len(expected), dropped, parameters)


def export_params(params: Params, config: DiTConfig, layout: str) -> dict[str, np.ndarray]:
    """The official state dict of `params`, contiguous arrays in torch layout, with `pos_embed`.

    Raises ValueError when `layout` does not belong to the model's mixer.
    """
    expected = slots(layout, config)
    leaves = {
        path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    table = sincos_position_table(config.grid, config.hidden_size)
    state = {"pos_embed": np.ascontiguousarray(table[None])}
    for key, slot in expected.items():
        to_torch = TRANSFORMS[slot.row.transform].to_torch
        parts = []
        for target in slot.row.targets:
            leaf = leaves[target] if slot.block is None else leaves[target][slot.block]
            parts.append(to_torch(leaf, slot.part_shape))
        # The safetensors writer reads raw memory: a transposed view would be written scrambled.
        state[key] = np.ascontiguousarray(np.concatenate(parts))
    return state


def position_problems(stored: Tensor, config: DiTConfig) -> list[str]:
    """Why a stored position table is not the analytic one of `config`; empty when it is."""
    shape = (1, config.num_tokens, config.hidden_size)
    if tuple(stored.shape) != shape:
        return [f"pos_embed has shape {tuple(stored.shape)}, the model needs {shape}"]
    array = np.asarray(stored)
    if array.dtype.name not in POSITION_TOLERANCE:
        return [f"pos_embed has dtype {array.dtype.name}; floating point is needed"]
    table = sincos_position_table(config.grid, config.hidden_size)
    difference = float(np.abs(array[0].astype(np.float32) - table).max())
    if difference <= POSITION_TOLERANCE[array.dtype.name]:
        return []
    rows, columns = config.grid
    return [
        f"pos_embed is not the sine-cosine table of a {rows}x{columns} token grid (max difference"
        f" {difference:.3g}); this package recomputes that table and cannot hold another one. If"
        " the grid is not square, pass --set input_size=HEIGHTxWIDTH"
    ]


def _structural_problems(state: StateDict, expected: Mapping[str, Slot]) -> list[str]:
    """Keys and shapes, before a single number is read."""
    problems = []
    for key in state:
        if key not in expected and key not in DROPPABLE:
            shape = tuple(state[key].shape)
            problems.append(f"unused key {key!r} {shape}: the model has no place for it")
    for key, slot in expected.items():
        if key not in state:
            wanted = f"key {key!r} {slot.source_shape}"
            problems.append(f"unfilled parameter {slot}: {wanted} is missing")
        elif tuple(state[key].shape) != slot.source_shape:
            problems.append(
                f"shape of {key!r}: checkpoint {tuple(state[key].shape)},"
                f" model {slot.source_shape} ({slot})"
            )
    return problems


def _as_float32(key: str, tensor: Tensor) -> tuple[np.ndarray, list[str]]:
    """The numbers as float32, and what is wrong with them."""
    array = np.asarray(tensor)
    floating = np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16
    values = array.astype(np.float32, copy=False)
    if not floating:
        return values, [f"{key!r} has dtype {array.dtype.name}; floating point is needed"]
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        return values, [f"{key!r} holds {bad} non-finite values of {values.size}"]
    return values, []


def _refusal(problems: list[str]) -> ValueError:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ValueError(f"the checkpoint does not fit the model, {len(problems)} problem(s):{lines}")
