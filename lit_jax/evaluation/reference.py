"""The reference of an evaluation: what it is, and where its statistics come from.

Statistics are read from files that have them. From images they are measured once and kept beside
the reference as a file of their own, which is found again by what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax import files
from lit_jax.config.encode import SourceConfig
from lit_jax.config.evaluate import TFDS, ReferenceConfig, tfds_name
from lit_jax.evaluation.image_sets import CroppedImages, FolderImages, ImageSet, check_levels
from lit_jax.evaluation.measuring import Measured, choose
from lit_jax.evaluation.network import Network
from lit_jax.evaluation.npz_images import NpzImages, array_names, open_npz
from lit_jax.evaluation.statistics import (
    Statistics,
    has_statistics,
    read_about,
    read_kept,
    read_statistics,
    write_statistics,
)

SUFFIX = ".statistics.npz"


@dataclass(frozen=True)
class Reference:
    """A reference whose files have been checked, but not yet measured.

    `images` is None for a file with statistics only. `given` are the statistics in the file, which
    come before those of its images: an ADM file has the statistics of a whole data set and a part
    of its images. `kept` (indices of images) and `cache` belong to `images`.
    """

    name: str
    kind: str
    network: Network
    images: ImageSet | None
    given: Statistics | None
    about: dict[str, Any] | None
    resolution: int
    kept: np.ndarray
    cache: Path | None

    def fingerprint(self) -> str:
        """A hash (hex) by which a changed reference is noticed: of the file, or of the images."""
        return files.sha256_file(self.name) if self.images is None else self.images.fingerprint()


def open_reference(config: ReferenceConfig, network: Network) -> Reference:
    """Raises ValueError for what is missing, no reference, or of another network."""
    path = Path(config.source).expanduser()
    images: ImageSet | None
    given = about = None
    if config.source.startswith(TFDS):
        kind, images = "tfds", _tfds_images(config)
        name, split = tfds_name(config.source)
        home, stem = Path(config.data_dir), f"{name.replace('/', '-')}-{split}"
    elif path.is_dir():
        kind, images = "folder", _folder_images(path, config.resolution)
        home, stem = path.resolve().parent, path.resolve().name
    elif path.suffix == ".npz" or path.is_file():
        kind, images, given, about = _npz_reference(path, config.resolution, network)
        home, stem = path.resolve().parent, path.stem
    else:
        raise ValueError(
            f"--reference {config.source} does not exist; give an npz, a folder of images or"
            " tfds:NAME:SPLIT"
        )
    if images is None:
        return Reference(str(path), kind, network, None, given, about, 0, np.arange(0), None)
    check_levels(images)
    home = Path(config.cache_dir).expanduser() if config.cache_dir else home
    side = f"-{config.resolution}px" if config.resolution else ""
    cache = home / f"{stem}{side}-{network.sha256[:8]}-{network.config.preprocessing}{SUFFIX}"
    kept = choose(images.count, config.images)
    return Reference(
        config.source, kind, network, images, given, None, config.resolution, kept, cache
    )


def _tfds_images(config: ReferenceConfig) -> ImageSet:
    # Imported where it is used: TFDS takes seconds.
    from lit_jax.data.sources import open_source

    name, split = tfds_name(config.source)
    source = open_source(SourceConfig(kind="tfds", path=config.data_dir, name=name, split=split))
    return CroppedImages(config.source, source, config.resolution)


def _folder_images(path: Path, resolution: int) -> ImageSet:
    if not resolution:
        return FolderImages(path)
    from lit_jax.data.folders import ImageFolder

    source = ImageFolder(SourceConfig(kind="folder", path=str(path)))
    return CroppedImages(str(path), source, resolution)


def _npz_reference(
    path: Path, resolution: int, network: Network
) -> tuple[str, ImageSet | None, Statistics | None, dict[str, Any] | None]:
    if resolution:
        raise ValueError(
            f"--resolution {resolution} crops photographs of a folder or data set; the images of"
            f" {path} are taken as they are: leave it out"
        )
    with open_npz(path) as archive:
        names = array_names(archive)
    given = read_statistics(path, network) if has_statistics(path) else None
    about = read_about(path)
    if about is not None:
        return "statistics of lit_jax", None, given, about
    images = NpzImages(path) if "arr_0" in names else None
    if images is None and given is None:
        raise ValueError(
            f"{path} holds {', '.join(names)}; a reference needs arr_0 (images), or mu and sigma"
            " (statistics)"
        )
    return "ADM npz", images, given, None


# --- statistics that were measured ---


def measured_from(reference: Reference, fingerprint: str) -> dict[str, Any]:
    """What measured statistics depend on, as their file says it."""
    assert reference.images is not None
    return {
        "inception": reference.network.identity(),
        "fingerprint": fingerprint,
        "images": reference.images.count,
        "size": list(reference.images.size),
        "crop": "adm" if reference.resolution else None,
        "kept": len(reference.kept),
    }


def is_cached(reference: Reference, fingerprint: str) -> bool:
    """Whether nothing has to be measured: there are no images, or the statistics of these images,
    by this network, are there already.

    Raises ValueError when a file of somebody else has the name of the cache.
    """
    cache = reference.cache
    if cache is None:
        return True
    if not cache.exists():
        return False
    about = read_about(cache)
    if about is None:
        raise ValueError(f"{cache} is no file of lit_jax; move it, or choose another --cache_dir")
    wanted = measured_from(reference, fingerprint)
    return {name: about[name] for name in wanted} == wanted


def check_cache(reference: Reference) -> None:
    """Raises ValueError unless the cache can be written, before hours of work are done for it."""
    assert reference.cache is not None
    folder = reference.cache.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{folder} cannot be written, where the statistics of {reference.name} would be kept;"
            " give another folder with --cache_dir"
        )


def write_cache(reference: Reference, measured: Measured, fingerprint: str, work: Path) -> None:
    """Keeps what was measured; `work` is a folder for the unfinished file."""
    assert reference.cache is not None
    unfinished = work / "statistics.npz"
    about = measured_from(reference, fingerprint)
    about |= {"name": reference.name, "images_sha256": measured.images_sha256}
    with open(unfinished, "wb") as file:
        write_statistics(file, measured, about)
    # The same name for the same job: what a killed run leaves, the next one replaces.
    job = hashlib.sha256(str(work.resolve()).encode()).hexdigest()[:8]
    beside = reference.cache.with_name(f".{reference.cache.name}.{job}.tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(unfinished, beside)
    os.replace(beside, reference.cache)


@dataclass(frozen=True)
class Known:
    """All that is known of a reference once it was measured. `images`: statistics of its images
    where those in its file come first; `kept_KxD`: pool features, None without images."""

    statistics: Statistics
    images: Statistics | None
    kept_KxD: np.ndarray | None
    images_sha256: str | None


def read_known(reference: Reference) -> Known:
    """The statistics of a reference, from its file and from its cache."""
    if reference.images is None:
        assert reference.given is not None
        if reference.about is None:
            return Known(reference.given, None, None, None)
        kept = read_kept(Path(reference.name))
        return Known(reference.given, None, kept, reference.about["images_sha256"])
    assert reference.cache is not None
    about = read_about(reference.cache)
    assert about is not None
    measured = read_statistics(reference.cache, reference.network)
    kept = read_kept(reference.cache)
    if reference.given is None:
        return Known(measured, None, kept, about["images_sha256"])
    return Known(reference.given, measured, kept, about["images_sha256"])
