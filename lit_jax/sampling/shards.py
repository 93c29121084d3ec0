"""Samples on disk: a file per shard, and the files they are merged into.

A shard is a fixed range of image numbers, whatever the number of processes. Its file appears whole
or not at all, so that the files that are there say what is left to do. Merging reads one shard at a
time: the whole set never has to fit into memory. N images, H x W pixels, C channels.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.evaluation.npz_images import RECORD, SAMPLES
from lit_jax.runs.requests import REQUEST
from lit_jax.storage import files
from lit_jax.storage.png import grid_of, write_png

FOLDER, LATENTS, GRID = "shards", "latents.npz", "grid.png"
ARRAYS = {"images": SAMPLES, "latents": LATENTS}
"""Array of a shard -> the file where it ends, as `arr_0`."""

GRID_COUNT, GRID_COLUMNS = 100, 10


@dataclass(frozen=True)
class Shards:
    """The shards of `count` images in `out`, `size` images each (the last one may have fewer)."""

    out: Path
    count: int
    size: int

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def span(self, number: int) -> tuple[int, int]:
        """Return first image of a shard, and the one after its last."""
        return number * self.size, min((number + 1) * self.size, self.count)

    def path(self, number: int) -> Path:
        return self.out / FOLDER / f"{number:05d}-of-{len(self):05d}.npz"

    def pending(self) -> list[int]:
        """Return the shards that are not on disk."""
        return [number for number in range(len(self)) if not self.path(number).exists()]

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        with files.atomic_path(self.path(number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, number: int, name: str) -> np.ndarray:
        """Return one array of a shard. Raises ValueError for a damaged file."""
        path = self.path(number)
        try:
            with np.load(path) as arrays:
                array: np.ndarray = arrays[name]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); remove it and run the same command again"
            ) from error
        return array

    def each(self, name: str) -> Iterator[np.ndarray]:
        """Yield one array of every shard, in order, one in memory at a time."""
        return (self.read(number, name) for number in range(len(self)))

    def remove_leftovers(self) -> None:
        """Remove what killed processes left half written."""
        for name in (*ARRAYS.values(), GRID, RECORD, REQUEST, f"{FOLDER}/*"):
            place = self.out / name
            for path in place.parent.glob(f".{place.name}.*.tmp"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the shards, once they are merged."""
        shutil.rmtree(self.out / FOLDER, ignore_errors=True)


@dataclass(frozen=True)
class Member:
    """An array of an `.npz` that is written piece by piece along its first axis."""

    shape: tuple[int, ...]
    dtype: Any
    pieces: Iterable[np.ndarray]


def write_npz(path: Path, members: Mapping[str, Member]) -> None:
    """Write what `np.savez` would write, byte for byte, without holding an array in memory.

    Atomic; the same content is the same file whenever it is written, because members of an `.npz`
    carry the date 1980-01-01. Members may exceed 4 GB (zip64).
    """
    with files.atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, member in members.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(member.dtype)),
                "fortran_order": False,
                "shape": member.shape,
            }
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in member.pieces:
                    file.write(np.ascontiguousarray(piece, member.dtype).data)


def merge(
    shards: Shards, shapes: Mapping[str, tuple[int, ...]], label_N: np.ndarray | None
) -> None:
    """Write the shards in order as `samples.npz` and `latents.npz`, and the grid of the first
    images.

    `shapes`: arrays of the shards -> shape of one image. Existing files are replaced, whole.
    """
    dtypes = {"images": np.uint8, "latents": np.float32}
    for name, shape in shapes.items():
        members = {"arr_0": Member((shards.count, *shape), dtypes[name], shards.each(name))}
        if label_N is not None:
            members["labels"] = Member(label_N.shape, np.int32, [label_N])
        write_npz(shards.out / ARRAYS[name], members)
    if "images" in shapes:
        first = -(-min(GRID_COUNT, shards.count) // shards.size)
        images_NxHxWxC = np.concatenate([shards.read(i, "images") for i in range(first)])
        grid = grid_of(images_NxHxWxC[:GRID_COUNT], columns=GRID_COLUMNS)
        write_png(shards.out / GRID, grid)
