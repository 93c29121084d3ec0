"""Writing parameters that never are in memory together.

orbax asks a handler to write each kind of leaf; the one here takes leaves that are still to be
read, and reads and writes them one after another. What lies on disk afterwards is an ordinary
checkpoint of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

# A leaf is compressed and written in chunks of at most this many bytes, a data file holds about as
# many of them: both bound what the writer buffers.
CHUNK_BYTES = 64 * 2**20
FILE_BYTES = 256 * 2**20

# Small leaves are read and written together: one at a time costs 20 ms each.
BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class UnreadLeaf:
    """An array of known shape and dtype whose numbers `read` fetches."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)


class UnreadLeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes `UnreadLeaf`s as numpy arrays, the next batch read only when the last is written."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> list[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        for batch in batches([leaf.nbytes for leaf in values]):
            arrays = [values[n].read() for n in batch]
            futures = await super().serialize(
                arrays, [infos[n] for n in batch], [args[n] for n in batch]
            )
            for future in futures:
                future.result()
        return []


def batches(sizes: Sequence[int], limit: int | None = None) -> list[list[int]]:
    """Return consecutive indices whose sizes sum to at most `limit`, a larger one alone."""
    limit = BATCH_BYTES if limit is None else limit
    found: list[list[int]] = []
    room = 0
    for n, size in enumerate(sizes):
        if not found or size > room:
            found.append([])
            room = limit
        found[-1].append(n)
        room -= size
    return found


def write_unread(directory: Path, leaves: Mapping[str, UnreadLeaf]) -> None:
    """Write a flat mapping (path -> leaf) as the nested tree that `StandardCheckpointer` would."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (UnreadLeaf, UnreadLeafHandler()),
        # Without one for its own arrays orbax warns.
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    tree = traverse_util.unflatten_dict(dict(leaves), sep="/")
    save_args = jax.tree.map(
        lambda leaf: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, UnreadLeaf),
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            directory,
            args=ocp.args.PyTreeSave(
                tree, save_args=save_args, ocdbt_target_data_file_size=FILE_BYTES
            ),
        )
