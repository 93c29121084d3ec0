"""Sets of images as the evaluation reads them: whole files never have to fit in memory.

Letters: N images, B images of one reading, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lit_jax.data.crop import center_crop
from lit_jax.data.sources.folders import IMAGE_SUFFIXES, list_files, printable
from lit_jax.data.sources.image_source import ImageSource, read_file
from lit_jax.storage import files

# Formats that keep the pixels; a palette, as in GIF, does not.
LOSSLESS = (".bmp", ".pgm", ".png", ".ppm", ".tif", ".tiff")

# What PIL calls 8-bit colour, grey and palette. Others (alpha, 16 bit, CMYK) have no one meaning.
_MODES = ("RGB", "L", "P", "1")

_THREADS = min(os.cpu_count() or 1, 32)


class ImageSet(Protocol):
    """`count` images of one `size` (height, width), in a fixed order."""

    name: str
    count: int
    size: tuple[int, int]
    channels: int
    lossy: int  # how many come from a lossy file format

    def read(self, first: int, last: int) -> np.ndarray:
        """Return images first .. last - 1, uint8 [B, H, W, 3]. Raises ValueError naming a bad
        one."""

    def where(self, index: int) -> str:
        """Return where an image comes from, for messages."""

    def fingerprint(self) -> str:
        """Return a hash (hex) by which a set that was changed is noticed."""


class ArrayImages:
    """Images that are in memory: uint8 [N, H, W, 1 or 3]."""

    lossy = 0

    def __init__(self, name: str, images_NxHxWxC: np.ndarray) -> None:
        check_array(name, images_NxHxWxC.shape, images_NxHxWxC.dtype)
        self.name = name
        self.count, height, width, self.channels = images_NxHxWxC.shape
        self.size = (height, width)
        self._images = images_NxHxWxC

    def read(self, first: int, last: int) -> np.ndarray:
        return colour(self._images[first:last])

    def where(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def fingerprint(self) -> str:
        return files.sha256_array(self._images)


class FolderImages:
    """All image files below a folder, in the order of their relative paths, as they are: 8-bit RGB
    or grey, all of one size. Hidden ones are left out, links are followed.

    Raises ValueError for a folder without images; a bad file is named when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._files = [file.path for file in list_files(path, IMAGE_SUFFIXES)]
        if not self._files:
            raise ValueError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        self.count = len(self._files)
        self.lossy = sum(not name.lower().endswith(LOSSLESS) for name in self._files)
        first = self._load(0)
        self.size, self.channels = (first.shape[0], first.shape[1]), 3
        self._readers = ThreadPoolExecutor(_THREADS)

    def read(self, first: int, last: int) -> np.ndarray:
        images = list(self._readers.map(self._load, range(first, last)))
        for index, image in enumerate(images, start=first):
            if image.shape[:2] != self.size:
                raise ValueError(
                    f"{self.where(index)} has {by(image.shape[:2])} pixels, {self.where(0)}"
                    f" {by(self.size)}; all images must have one size (a reference of photographs"
                    " is cropped with --resolution)"
                )
        return np.stack(images)

    def _load(self, index: int) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(read_file(self._path / self._files[index]))) as image:
                mode, image_HxWx3 = image.mode, np.asarray(image.convert("RGB"))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly anything for damaged files
            raise ValueError(f"{self.where(index)} cannot be read: {error}") from error
        if mode not in _MODES:
            raise ValueError(
                f"{self.where(index)} is of mode {mode}; 8-bit RGB or grey is needed,"
                " without an alpha channel"
            )
        return image_HxWx3

    def where(self, index: int) -> str:
        return printable(str(self._path / self._files[index]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        paths = [self._path / name for name in self._files]
        contents = self._readers.map(files.sha256_file, paths)
        for name, content in zip(self._files, contents, strict=True):
            digest.update(os.fsencode(name) + f"|{content}\n".encode())
        return digest.hexdigest()


class CroppedImages:
    """Photographs of any size as the squares that models are trained on: the ADM centre crop."""

    lossy = 0  # the reference of a data set is what its files are
    channels = 3

    def __init__(self, name: str, source: ImageSource, resolution: int) -> None:
        self.name, self.count, self.size = name, len(source), (resolution, resolution)
        self._source = source
        self._readers = ThreadPoolExecutor(_THREADS)

    def read(self, first: int, last: int) -> np.ndarray:
        return np.stack(list(self._readers.map(self._load, range(first, last))))

    def _load(self, index: int) -> np.ndarray:
        try:
            return center_crop(self._source.load(index), self.size[0])
        except ValueError as error:
            raise ValueError(
                f"{self.where(index)} cannot be used: {error}; repair or remove it"
            ) from error

    def where(self, index: int) -> str:
        return f"{self._source.name(index)} of {self.name}"

    def fingerprint(self) -> str:
        # Names and sizes: whole photographs would be read twice.
        return self._source.listing_sha256()


def check_levels(images: ImageSet, count: int = 64) -> list[str]:
    """Return a warning when images from all over the set are black. Raises ValueError when they use
    no grey level above 1: uint8 made of 0..1."""
    chosen = np.unique(np.linspace(0, images.count - 1, count).astype(int))
    largest = 0
    for index in map(int, chosen):
        largest = max(largest, int(images.read(index, index + 1).max()))
        if largest > 1:
            return []
    if largest == 0:
        return [f"{images.name}: {len(chosen)} images from all over the set are black"]
    raise ValueError(
        f"{len(chosen)} images from all over {images.name} hold grey levels 0 and 1 only;"
        " 0..255 are needed: scale before the conversion to uint8"
    )


def check_array(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError unless this is an array of uint8 images."""
    if dtype != np.uint8:
        raise ValueError(
            f"{name} is {dtype}, not uint8; store grey levels 0..255 as uint8 (samples in [-1, 1]:"
            " 127.5 x + 128, cut to 0..255, fractions dropped)"
        )
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; [N, H, W, 3] is needed, channels last")


def colour(images_BxHxWxC: np.ndarray) -> np.ndarray:
    """Return grey images as colour images with three equal channels."""
    if images_BxHxWxC.shape[-1] == 3:
        return images_BxHxWxC
    return np.repeat(images_BxHxWxC, 3, axis=-1)


def by(size: tuple[int, ...]) -> str:
    """Return a size in words: 256 x 256."""
    return " x ".join(map(str, size))
