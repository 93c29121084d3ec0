"""The registry of data sets, from which `encode` and `train` open their data.

A data set is a folder of latents, which `python -m lit_jax encode` wrote, or images of a row of
SOURCES. To add a source of images, write a subclass of `ImageSource` and add a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_jax.config import DataConfig, SourceConfig, unknown_name
from lit_jax.data.latents.schema import SCHEMA, is_latent_folder
from lit_jax.data.sources.folders import ClassFolders, ImageFolder
from lit_jax.data.sources.image_source import ImageSource
from lit_jax.data.sources.tfds_images import TfdsImages, holds_images

LATENTS = "latents"

SOURCES: dict[str, Callable[[SourceConfig], ImageSource]] = {
    "tfds": TfdsImages,
    "class_folders": ClassFolders,
    "folder": ImageFolder,
}
"""Kind of a source of images -> its class."""

BUILDERS: Mapping[str, str] = {"digits": "demo.digits.dataset:builder"}
"""Data sets that `python -m lit_jax.data NAME DATA_DIR` prepares with code of this repository:
name -> function that takes DATA_DIR and returns a TFDS builder. All others: `tfds build`."""


def open_source(config: SourceConfig) -> ImageSource:
    """Return the images that `config` describes. Lists them and reads none.

    Raises ValueError for an unknown kind, and what the kind raises: for folders that are missing or
    empty, data sets that are not prepared.
    """
    if config.kind not in SOURCES:
        raise unknown_name("source.kind", config.kind, SOURCES)
    return SOURCES[config.kind](config)


def dataset_kind(data: DataConfig) -> str:
    """Return LATENTS or a row of SOURCES: `data.kind`, or what lies in the folder of the data set.

    Raises ValueError for an unknown kind, and without a kind when the folder holds neither latents
    nor a prepared TFDS data set.
    """
    folder = Path(data.data_dir, data.name)
    if data.kind:
        if data.kind not in (LATENTS, *SOURCES):
            raise unknown_name("data.kind", data.kind, (LATENTS, *SOURCES))
        return data.kind
    if is_latent_folder(folder):
        return LATENTS
    if holds_images(folder):
        return "tfds"
    if data.name in BUILDERS:
        raise ValueError(
            f"data set {data.name!r} is not prepared in {data.data_dir!r}; run"
            f" `python -m lit_jax.data {data.name} {data.data_dir}`"
        )
    there = [path.name for path in folder.parent.glob("*/")]
    raise ValueError(
        f"{unknown_name('data set', data.name, {*there, *BUILDERS})}, and {folder} holds no latents"
        f" (no {SCHEMA}, which `python -m lit_jax encode` writes) and no prepared TFDS data set;"
        " for images in folders set data.kind to 'class_folders' or 'folder'"
    )


def open_images(data: DataConfig, kind: str) -> ImageSource:
    """Return the images of a data set that is no folder of latents. A TFDS data set is found by its
    name in `data_dir`; other kinds read the folder `data_dir`/`name`."""
    path = data.data_dir if kind == "tfds" else str(Path(data.data_dir, data.name))
    name = data.name if kind == "tfds" else ""
    return open_source(SourceConfig(kind=kind, path=path, name=name, split=data.split))


def builder(name: str, data_dir: str) -> Any:
    """Return the TFDS builder of a row of BUILDERS. Raises ValueError for an unknown name, and
    where the code of the row is missing, outside a checkout of the repository."""
    if name not in BUILDERS:
        raise unknown_name("data set", name, BUILDERS)
    module, function = BUILDERS[name].split(":")
    try:
        return getattr(importlib.import_module(module), function)(data_dir)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data set {name!r} is prepared by {module}, which cannot be imported ({error}); run"
            " the command in the folder of the repository, with requirements.txt installed"
        ) from error
