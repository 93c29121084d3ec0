"""Images that lie in folders: one folder per class, or any folders, with or without captions."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_jax.config import SourceConfig
from lit_jax.data.sources.image_source import (
    BrokenImage,
    ImageSource,
    decode_text,
    read_file,
    require_text,
)

IMAGE_SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


@dataclass(frozen=True)
class Listed:
    """A file: its path relative to the listed folder, with "/", and its size in bytes (-1 when it
    is unknown)."""

    path: str
    size: int


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[Listed]:
    """Return all files below `root` that end in one of `suffixes` (in any case), sorted by path.

    Hidden files and folders are left out, links are followed. The order is that of the characters
    of the path and the same on every machine.
    """
    return sorted(_walk(str(root), "", suffixes, ()), key=lambda file: file.path)


def _walk(
    folder: str, relative: str, suffixes: tuple[str, ...], above: tuple[str, ...]
) -> Iterator[Listed]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{relative}{entry.name}"
            if entry.is_dir():
                yield from _walk(entry.path, f"{path}/", suffixes, (*above, real))
            elif entry.name.lower().endswith(suffixes):
                yield Listed(path, _size(entry))


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing: kept, so that it is reported
        return -1


class ImageFolder(ImageSource):
    """All images below a folder, sorted by their relative path. With `captions` ("txt",) the text
    of image `a/b.png` is `a/b.txt` (UTF-8, stripped), which `a/b.jpg` would share. An image without
    any text that is not empty is a broken image."""

    def __init__(self, config: SourceConfig) -> None:
        """Raise ValueError when the folder is missing or holds no image."""
        self._root = image_root(config.path)
        self.captions = config.caption_kinds
        self._endings = tuple(f".{name}" for name in config.captions)
        endings = tuple(ending.lower() for ending in self._endings)
        listed = list_files(self._root, (*IMAGE_SUFFIXES, *endings))
        # Captions belong to the listing: an encode must not resume after they changed.
        self._listed = listed
        self._paths = [f.path for f in listed if f.path.lower().endswith(IMAGE_SUFFIXES)]
        # Per kind: path of an image without its suffix -> path of the text.
        self._texts = [
            {f.path[: -len(ending)]: f.path for f in listed if f.path.lower().endswith(ending)}
            for ending in endings
        ]
        require_images(self._paths, self._root)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return printable(self._paths[index])

    def encoded(self, index: int) -> bytes:
        return read_file(self._root / self._paths[index])

    def label(self, index: int) -> int | None:
        return None

    def texts(self, index: int) -> tuple[str, ...]:
        stem = os.path.splitext(self._paths[index])[0]
        paths = [paths.get(stem) for paths in self._texts]
        if self.captions and not any(paths):
            names = (printable(os.path.basename(stem) + ending) for ending in self._endings)
            raise BrokenImage(f"no caption: there is no {' and no '.join(names)}")
        return require_text(
            ["" if path is None else decode_text(read_file(self._root / path)) for path in paths]
        )

    def listing_sha256(self) -> str:
        return listing_sha256(self._listed)


class ClassFolders(ImageSource):
    """A folder with one folder per class, as torchvision's ImageFolder reads it: classes are sorted
    by name and counted from 0, the images of a class by their relative path."""

    def __init__(self, config: SourceConfig) -> None:
        """Raise ValueError when the folder is missing, when an image or nothing lies directly in
        it, and when a class is empty."""
        self._root = image_root(config.path)
        self._listed = list_files(self._root, IMAGE_SUFFIXES)
        outside = [file.path for file in self._listed if "/" not in file.path]
        if outside:
            raise ValueError(
                f"{len(outside)} images lie directly in {self._root}, e.g. {outside[0]}, and have"
                " no class; move them into folders, one per class, or use source.kind 'folder'"
            )
        folders = sorted(
            entry.name
            for entry in os.scandir(self._root)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        count = Counter(file.path.split("/")[0] for file in self._listed)
        require_images([file.path for file in self._listed], self._root)
        # A class without images would still be a class of the model.
        if empty := [name for name in folders if not count[name]]:
            raise ValueError(
                f"{len(empty)} of {len(folders)} class folders in {self._root} hold no images:"
                f" {', '.join(empty[:3])}; remove or fill them"
            )
        # TFDS keeps the names of classes one to a line, stripped.
        if odd := [name for name in folders if [name] != name.strip().splitlines()]:
            raise ValueError(
                f"class folder {odd[0]!r} in {self._root} begins or ends with white space, or has a"
                " line break in its name; rename it"
            )
        number = {name: index for index, name in enumerate(folders)}
        # Sorted by path alone, "a b/x.png" would stand between the images of "a".
        self._listed.sort(key=lambda file: (number[file.path.split("/")[0]], file.path))
        self.classes = tuple(printable(name) for name in folders)
        self._labels = [number[file.path.split("/")[0]] for file in self._listed]

    def __len__(self) -> int:
        return len(self._listed)

    def name(self, index: int) -> str:
        return printable(self._listed[index].path)

    def encoded(self, index: int) -> bytes:
        return read_file(self._root / self._listed[index].path)

    def label(self, index: int) -> int | None:
        return self._labels[index]

    def texts(self, index: int) -> tuple[str, ...]:
        return ()

    def listing_sha256(self) -> str:
        return listing_sha256(self._listed)


def image_root(path: str) -> Path:
    """Return the folder `path`, with ~ replaced. Raises ValueError when there is none."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"source.path {root} is {'no folder' if root.exists() else 'missing'}; it must be a"
            " folder of images"
        )
    return root


def require_images(paths: list[str], root: Path) -> None:
    """Raise ValueError for an empty listing."""
    if not paths:
        raise ValueError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)})")


def listing_sha256(listed: list[Listed]) -> str:
    """Return sha256 (hex) of the paths and sizes, in order."""
    digest = hashlib.sha256()
    for file in listed:
        digest.update(os.fsencode(file.path) + b"\0%d\n" % file.size)
    return digest.hexdigest()


def printable(path: str) -> str:
    """Return a path as one line of UTF-8, whatever bytes the name of the file has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace("\n", "\\n")
