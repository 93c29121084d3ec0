"""Npz files that are written piece by piece."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.storage import files


@dataclass(frozen=True)
class Member:
    """An array of an `.npz` that is written piece by piece along its first axis."""

    shape: tuple[int, ...]
    dtype: Any
    pieces: Iterable[np.ndarray]


def write_npz(path: Path, members: Mapping[str, Member]) -> None:
    """Write the bytes that `np.savez` would write, without holding an array in memory.

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
