"""The kinds of image sources: a table, and the door to it."""

from __future__ import annotations

from collections.abc import Callable

from lit_jax.config import SourceConfig, unknown_name
from lit_jax.data.sources.folders import ClassFolders, ImageFolder
from lit_jax.data.sources.image_source import BrokenImage, ImageSource
from lit_jax.data.sources.tfds_images import TfdsImages

__all__ = ["KINDS", "BrokenImage", "ImageSource", "open_source"]

KINDS: dict[str, Callable[[SourceConfig], ImageSource]] = {
    "tfds": TfdsImages,
    "class_folders": ClassFolders,
    "folder": ImageFolder,
}


def open_source(config: SourceConfig) -> ImageSource:
    """Return the images `config` describes. Lists them, and reads none.

    Raises ValueError for an unknown kind, and what the kind raises: for folders that are missing or
    empty, data sets that are not prepared.
    """
    if config.kind not in KINDS:
        raise unknown_name("source.kind", config.kind, KINDS)
    return KINDS[config.kind](config)
