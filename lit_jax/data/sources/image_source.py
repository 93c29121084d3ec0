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

# Errors of one file. All others (a network file system that does not answer, no file handles, no
# memory) are errors of the machine and may not occur in the next attempt.
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
    """Error of an image that cannot be used. The message is the same in every run, since it is
    written into a file that must not depend on the run."""


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
        """Return the name of image `index`: a relative path, or the name in its data set."""

    @abc.abstractmethod
    def encoded(self, index: int) -> bytes:
        """Return the image file. Raises BrokenImage when it cannot be read."""

    @abc.abstractmethod
    def label(self, index: int) -> int | None:
        """Return the class, 0 .. len(classes) - 1; None without classes. Raises BrokenImage when
        this image has none."""

    @abc.abstractmethod
    def texts(self, index: int) -> tuple[str, ...]:
        """Return the stripped text of every kind of `captions`, "" for a missing one. Raises
        BrokenImage when all are missing, or one cannot be read."""

    @abc.abstractmethod
    def listing_sha256(self) -> str:
        """Return a hash of names, order and sizes of the images, without their pixels."""

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
        raise  # an error of the machine, not of the image
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise BrokenImage(reason(error)) from error


def decode_text(encoded: bytes) -> str:
    """Return a caption from UTF-8, stripped. Raises BrokenImage for other encodings."""
    try:
        # Editors on Windows begin a file with a byte-order mark.
        text = encoded.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BrokenImage(f"the caption is not UTF-8 (byte {error.start})") from error
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8
        raise BrokenImage("the caption is not UTF-8 text (it holds zero bytes)")
    return text


def require_text(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of an image. Raises BrokenImage when there are texts and all are empty."""
    if texts and not any(texts):
        raise BrokenImage("the caption is empty")
    return tuple(texts)


def reason(error: Exception) -> str:
    """Return the reason of an error, without addresses and paths, which change between runs."""
    if isinstance(error, BrokenImage):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    line: Any = (str(error).splitlines() or [""])[0]
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {line}")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file. Raises BrokenImage for other files and for files that
    may not be read, OSError for errors of the machine."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise BrokenImage("not a regular file")  # a pipe would wait for ever
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        raise BrokenImage(reason(error)) from error
