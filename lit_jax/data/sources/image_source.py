"""Interface of a source of images, and the decoding of bytes to an RGB image."""

from __future__ import annotations

import abc
import errno
import io
import os
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

# Errors that say something about this one file. All others (a network file system that does not
# answer, no file handles, no memory) are the machine's, and the next attempt may not have them.
_OF_THE_FILE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
}

# Formats that Pillow decodes by itself; for some others it would start a program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
Image.init()  # before threads ask for them


class BrokenImage(ValueError):
    """An image that cannot be used. The message says why in words that are the same in every run:
    they end up in a file that must not depend on the run."""


class ImageSource(abc.ABC):
    """Images in a fixed order, with random access; safe to be used by several threads.

    `classes` are the names of the labels 0, 1, ...; empty without labels. `captions` are the kinds
    of texts of an image. `image_shape` [H, W, C] is recorded when all images have the same. Each
    method reads only what it returns. Training with worker processes pickles the source.
    """

    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return what image `index` is called in lists: a relative path, or the name in its data
        set."""

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """Return the image file. Raises BrokenImage when it cannot be read."""

    @abc.abstractmethod
    def label(self, index: int) -> int | None:
        """Return the class, 0 .. len(classes) - 1; None without classes. Raises BrokenImage when
        this image has none."""

    @abc.abstractmethod
    def texts(self, index: int) -> tuple[str, ...]:
        """Return the text of every kind of `captions`, stripped, "" for one that this image lacks.
        Raises BrokenImage when it lacks them all, or one cannot be read."""

    @abc.abstractmethod
    def listing_sha256(self) -> str:
        """Return hash of what there is to read: names, order and sizes, not the pixels."""

    def load(self, index: int) -> Image.Image:
        """Return the image, in RGB. Raises BrokenImage when it cannot be decoded."""
        return decode_rgb(self.encoded(index))


def decode_rgb(encoded: bytes) -> Image.Image:
    """Return an image file as an RGB image, the way torchvision's ImageFolder (and so DiT) reads
    it.

    That is Pillow's `convert("RGB")` of the first frame: transparency is dropped, not blended;
    16-bit and float greys are cut off at 255, not scaled; the orientation of EXIF is ignored.
    Raises BrokenImage with the reason.
    """
    if not encoded:
        raise BrokenImage("the file is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            return image.convert("RGB")
    except MemoryError:
        raise  # this machine's trouble, not the image's
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise BrokenImage(reason(error)) from error


def decode_text(encoded: bytes) -> str:
    """Return a caption: UTF-8, stripped. Raises BrokenImage when it is something else."""
    try:
        # Editors on Windows begin a file with a byte-order mark.
        text = encoded.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BrokenImage(f"the caption is not UTF-8 (byte {error.start})") from error
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8
        raise BrokenImage("the caption is not UTF-8 text (it holds zero bytes)")
    return text


def require_text(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of an image; BrokenImage when there should be some and all are empty."""
    if texts and not any(texts):
        raise BrokenImage("the caption is empty")
    return tuple(texts)


def reason(error: Exception) -> str:
    """Return why an image was given up, free of what changes between runs: addresses and paths."""
    if isinstance(error, BrokenImage):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    line: Any = (str(error).splitlines() or [""])[0]
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {line}")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file. Raises BrokenImage when it is none or may not be read,
    OSError when the reason is not the file."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise BrokenImage("not a regular file")  # a pipe would wait for ever
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise BrokenImage(reason(error)) from error
