"""Arrays in npz files, of images above all, without reading whole files into memory.

Letters: N images, B images of one reading, H height, W width, C channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from lit_jax.evaluation.image_sets import check_array, colour

# What the sample job leaves in its folder: the images, and the record that says it was finished.
SAMPLES, LATENTS, RECORD = "samples.npz", "latents.npz", "sample.json"

_PIECE = 1 << 24  # bytes read at a time where images are not needed


class NpzImages:
    """`arr_0` of an npz in the layout of the ADM suite: uint8 [N, H, W, 1 or 3].

    A stored array is mapped into memory; a compressed one is decompressed as it is read, again from
    the start when an earlier image is asked for. Raises ValueError for anything but such an array.
    """

    lossy = 0

    def __init__(self, path: Path, key: str = "arr_0") -> None:
        self.name = str(path)
        self._path, self._member = path, f"{key}.npy"
        with open_npz(path) as archive:
            if self._member not in archive.namelist():
                raise ValueError(f"{path} has no {key}; it holds {array_names(archive)}")
            self._info = info = archive.getinfo(self._member)
            with readable(path), archive.open(info) as stream:
                shape, fortran, dtype = _npy_header(stream)
                header = stream.tell()
        check_array(f"{key} of {path}", shape, dtype)
        if fortran:
            raise ValueError(f"{key} of {path} is in Fortran order; save it in C order")
        self.count, height, width, self.channels = shape
        self.size = (height, width)
        self._image_bytes = height * width * self.channels
        self._header = header
        self._map: np.ndarray | None = None
        wanted = header + self.count * self._image_bytes
        if info.file_size < wanted:
            raise ValueError(_cut_short(path))
        if info.compress_type == zipfile.ZIP_STORED:
            start = _data_offset(path, info)
            if path.stat().st_size < start + wanted:
                raise ValueError(_cut_short(path))
            self._map = np.memmap(path, np.uint8, "r", offset=start + header, shape=shape)
        self._stream: IO[bytes] | None = None
        self._position = 0

    def read(self, first: int, last: int) -> np.ndarray:
        if self._map is not None:
            return colour(np.array(self._map[first:last]))
        wanted = (last - first) * self._image_bytes
        with readable(self._path):
            data = self._stream_at(first).read(wanted)
        if len(data) < wanted:
            raise ValueError(_cut_short(self._path))
        self._position = last
        images = np.frombuffer(data, np.uint8).reshape(last - first, *self.size, self.channels)
        return colour(images)

    def _stream_at(self, index: int) -> IO[bytes]:
        """Return the decompressed array from image `index` on."""
        if self._stream is None or index < self._position:
            self._stream = open_npz(self._path).open(self._member)
            self._position = 0
            self._stream.read(self._header)
        rest = (index - self._position) * self._image_bytes
        while rest:
            skipped = len(self._stream.read(min(rest, _PIECE)))
            if not skipped:
                raise ValueError(_cut_short(self._path))
            rest -= skipped
        self._position = index
        return self._stream

    def where(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def fingerprint(self) -> str:
        """Return sha256 of the file. Raises ValueError when a stored array is not what was written;
        a compressed one is checked when it is read."""
        digest, crc, position = hashlib.sha256(), 0, 0
        first = _data_offset(self._path, self._info)
        last = first + self._info.compress_size
        with readable(self._path), open(self._path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                inside = slice(max(first - position, 0), max(last - position, 0))
                crc = zlib.crc32(memoryview(piece)[inside], crc)
                position += len(piece)
        if self._map is not None and crc != self._info.CRC:
            raise ValueError(f"{self._path} is damaged: its checksum is wrong; copy it again")
        return digest.hexdigest()


@contextlib.contextmanager
def readable(path: Path, remedy: str = "copy or make it again") -> Iterator[None]:
    """Turn what a damaged npz raises in the block into a ValueError that names the file."""
    try:
        yield
    except (
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,  # another compression
        RuntimeError,  # a password
    ) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from error


def _cut_short(path: Path) -> str:
    return f"{path} is cut short; copy it again"


def open_npz(path: Path) -> zipfile.ZipFile:
    """Return the archive behind an npz; ValueError when it is none."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is no npz file, or cut short: {error}") from error


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """Return the arrays of an npz."""
    return sorted(name.removesuffix(".npy") for name in archive.namelist())


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(stream)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin: behind its local header of 30 bytes, name and
    extras."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())
