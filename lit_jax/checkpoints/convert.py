"""State dict <-> parameter tree, strictly: every key and every leaf is accounted for.

Parameters are nested dicts of float32 arrays with the blocks stacked on axis 0; a state dict maps
torch keys to arrays in torch layout. The pairing is the tables' alone. An import reads one tensor
at a time, so that a checkpoint larger than the memory can pass through to a model folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from lit_jax.checkpoints.identity import LeafSum, tree_sha256
from lit_jax.checkpoints.layouts import layout_of
from lit_jax.checkpoints.pairing import (
    Slot,
    StateDict,
    Tensor,
    abstract_leaves,
    layout_named,
    slots,
    stand_in,
    structural_problems,
)
from lit_jax.checkpoints.streaming import UnreadLeaf
from lit_jax.keymap.rows import TRANSFORMS, Layout, Shape
from lit_jax.models.family import Positions
from lit_jax.models.functional import Params
from lit_jax.models.registry import NetworkConfig, family_of
from lit_jax.models.transformer.positions import POSITION_TOLERANCE

Progress = Callable[[int, int], None]
"""Called with (parameters done, parameters in all) after every tensor."""


@dataclass(frozen=True)
class Piece:
    """A part of a torch tensor that is one block of a leaf (`index`), or all of it (None)."""

    key: str
    slot: Slot
    part: int


@dataclass
class Import:
    """A checkpoint paired with a model: leaf shapes now, numbers tensor by tensor.

    `problems`, `notes` and `non_finite` (key -> how many of its numbers) grow while numbers are
    read; `finish` raises the problems. `dtypes` are those of the tensors read so far. `dropped`
    maps the keys that hold no parameter to the reason. `sums` are the `LeafSum` of the leaves
    read so far, before they were rounded.
    """

    state: StateDict
    layout: Layout
    config: NetworkConfig
    expected: dict[str, Slot]
    shapes: dict[str, Shape]
    dropped: dict[str, str]
    progress: Progress | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: int = 0
    dtypes: set[str] = field(default_factory=set)
    non_finite: dict[str, int] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """`tree_sha256` of all numbers, once they are read."""
        return tree_sha256(self.sums)

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def used(self) -> int:
        """Keys of the checkpoint that hold parameters."""
        return sum(key in self.state for key in self.expected)

    def pieces(self, path: str) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yield (place on the stacked axis, float32 numbers) of every piece of one leaf."""
        for piece in self._plan[path]:
            stored = np.asarray(self.state[piece.key])
            self.dtypes.add(stored.dtype.name)
            array = self._as_float32(piece, stored)
            self.done += array.size
            yield piece.slot.index, TRANSFORMS[piece.slot.row.transform].to_param(array)
            if self.progress is not None:
                self.progress(self.done, self.parameters)

    def unread(self, dtype: np.dtype) -> dict[str, UnreadLeaf]:
        """Return path -> leaf in `dtype`, to be read when it is written. A number that `dtype`
        cannot hold is a problem."""

        def reader(path: str) -> Callable[[], np.ndarray]:
            def read() -> np.ndarray:
                leaf = np.empty(self.shapes[path], dtype)
                total = LeafSum(leaf.shape)
                for index, array in self.pieces(path):
                    place = ... if index is None else index
                    with np.errstate(over="ignore"):
                        leaf[place] = array
                    total.add(array)
                    if lost := _overflow(array, leaf[place]):
                        where = path if index is None else f"{path}[{index}]"
                        self.problems.append(
                            f"{where} holds {lost} of {array.size} values beyond {dtype.name}; keep"
                            " it in float32"
                        )
                self.sums[path] = total.hexdigest()
                return leaf

            return read

        return {path: UnreadLeaf(shape, dtype, reader(path)) for path, shape in self.shapes.items()}

    def _as_float32(self, piece: Piece, array: np.ndarray) -> np.ndarray:
        """Return the part of a tensor that the piece is, as float32; note what is wrong with it."""
        floating = np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16
        name, rows = array.dtype.name, piece.slot.part_shape[0]
        if len(piece.slot.leaves) > 1:
            array = array[piece.part * rows : (piece.part + 1) * rows]
        if not floating:
            if piece.part == 0:
                problem = f"{piece.key!r} has dtype {name}; floating point is needed"
                self.problems.append(problem)
            return np.zeros(array.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            values = array.astype(np.float32, copy=False)
        if bad := values.size - int(np.isfinite(values).sum()):
            self.non_finite[piece.key] = self.non_finite.get(piece.key, 0) + bad
        return values

    def finish(self) -> None:
        """Compare copies and the position table; raise ValueError for all problems at once."""
        for key, bad in self.non_finite.items():
            size = int(np.prod(self.state[key].shape))
            self.problems.append(f"{key!r} holds {bad} non-finite values of {size}")
        for key, slot in self.expected.items():
            first = slot.copy_of
            if first is None or first not in self.state or key not in self.state:
                continue
            if not np.array_equal(np.asarray(self.state[first]), np.asarray(self.state[key])):
                self.problems.append(f"{key!r} is not the copy of {first!r} it must be")
        if "pos_embed" in self.dropped:
            self._check_positions()
        if self.problems:
            raise _refusal(self.problems)

    def _check_positions(self) -> None:
        """DiT reads its table from the file, so another one is another model; the official PixArt
        throws the stored one away and recomputes it for the size that it is asked for."""
        positions = positions_of(self.config)
        problem = position_problem(self.state["pos_embed"], self.config)
        if problem is None:
            return
        if not positions.strict:
            config: Any = self.config
            size, scale = config.input_size, config.pe_interpolation
            self.notes.append(
                f"{problem} with input_size {size} and pe_interpolation {scale:g}; it is recomputed"
                " for these, as the official PixArt does. Were they not meant, pass them with --set"
            )
        else:
            self.problems.append(
                f"{problem}; this package recomputes that table and cannot hold another one. If"
                " the grid is not square, pass --set input_size=HEIGHTxWIDTH"
            )

    def __post_init__(self) -> None:
        self._plan: dict[str, list[Piece]] = {path: [] for path in self.shapes}
        for key, slot in self.expected.items():
            source = key if key in self.state else stand_in(key, self.state, self.expected)
            if slot.copy_of is None and source is not None:
                for part, path in enumerate(slot.leaves):
                    self._plan[path].append(Piece(source, slot, part))
        for pieces in self._plan.values():
            # In the order of the stacked axis, in which a sum of the leaf takes them.
            pieces.sort(key=lambda piece: piece.slot.index or 0)


def start_import(
    state: StateDict,
    config: NetworkConfig,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> Import:
    """Pair a checkpoint with a configuration; only keys and shapes are looked at.

    Raises one ValueError that lists every unused key, unfilled parameter and wrong shape, and one
    for a layout that cannot hold the model.
    """
    layout = layout_named(config, (layout or layout_of(list(state))).name)
    expected = slots(layout, config)
    if problems := structural_problems(state, expected, layout):
        raise _refusal(problems)
    reasons = {key: layout.reason_to_drop(key) for key in state if key not in expected}
    dropped = {key: reason for key, reason in reasons.items() if reason is not None}
    shapes = {path: tuple(leaf.shape) for path, leaf in abstract_leaves(config).items()}
    work = Import(state, layout, config, expected, shapes, dropped, progress)
    if (note := family_of(config).note(config)) is not None:
        work.notes.append(note)
    return work


def import_params(
    state: StateDict,
    config: NetworkConfig,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> tuple[Params, Import]:
    """Return the parameters of `config` from a state dict, all of them in memory, and where from.

    Raises what `start_import` raises, and one ValueError that lists every wrong dtype, non-finite
    tensor, copy that is none, and a position table that is not the analytic one.
    """
    work = start_import(state, config, layout, progress)
    leaves = {path: leaf.read() for path, leaf in work.unread(np.dtype(np.float32)).items()}
    work.finish()
    return traverse_util.unflatten_dict(leaves, sep="/"), work


def export_params(
    params: Params, config: NetworkConfig, layout: str | Layout
) -> dict[str, np.ndarray]:
    """Return the state dict of `params`, contiguous arrays in torch layout, with `pos_embed` where
    the official one has it.

    Raises ValueError when `layout` cannot hold the model.
    """
    layout = layout_named(config, layout if isinstance(layout, str) else layout.name)
    leaves = {
        path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    state = {}
    if layout.reason_to_drop("pos_embed"):
        state["pos_embed"] = np.ascontiguousarray(position_table(config)[None])
    for key, slot in slots(layout, config).items():
        if slot.optional or set(slot.leaves) & set(layout.omits):
            continue
        to_torch = TRANSFORMS[slot.row.transform].to_torch
        parts = []
        for path in slot.leaves:
            leaf = leaves[path] if slot.index is None else leaves[path][slot.index]
            parts.append(to_torch(leaf, slot.part_shape))
        # The safetensors writer reads raw memory: a transposed view would be written scrambled.
        state[key] = np.ascontiguousarray(np.concatenate(parts))
    return state


def position_table(config: NetworkConfig) -> np.ndarray:
    """Return the table that an official file stores as `pos_embed`: [N, D] of the nominal token
    grid."""
    return positions_of(config).table(config)


def positions_of(config: NetworkConfig) -> Positions:
    """Return the position table of the family. Raises ValueError for a network without one."""
    positions = family_of(config).positions
    if positions is None:
        raise ValueError(f"a {config.family} has no position table")
    return positions


def position_problem(stored: Tensor, config: Any) -> str | None:
    """Return why a stored position table is not the analytic one of `config`; None when it is."""
    table = position_table(config)
    shape = (1, *table.shape)
    if tuple(stored.shape) != shape:
        return f"pos_embed has shape {tuple(stored.shape)}, the model needs {shape}"
    array = np.asarray(stored)
    if array.dtype.name not in POSITION_TOLERANCE:
        return f"pos_embed has dtype {array.dtype.name}; floating point is needed"
    difference = float(np.abs(array[0].astype(np.float32) - table).max())
    if difference <= POSITION_TOLERANCE[array.dtype.name]:
        return None
    rows, columns = config.grid
    return (
        f"pos_embed is not the sine-cosine table of a {rows}x{columns} token grid (max difference"
        f" {difference:.3g})"
    )


def _overflow(values: np.ndarray, written: np.ndarray) -> int:
    """Return how many finite values are no longer finite where they were written."""
    if written.dtype == values.dtype or np.isfinite(written).all():
        return 0
    return int((np.isfinite(values) & ~np.isfinite(written)).sum())


def _refusal(problems: list[str]) -> ValueError:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ValueError(f"the checkpoint does not fit the model, {len(problems)} problem(s):{lines}")
