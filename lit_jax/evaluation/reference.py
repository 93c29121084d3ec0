"""The reference of an evaluation: what it is, and where its statistics come from.

Statistics are read from files that have them. From images they are measured once and kept beside
the reference as a file of their own, which is found again by what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.config.encode import SourceConfig
from lit_jax.config.evaluate import TFDS, USUAL_IMAGES, ReferenceConfig, tfds_name
from lit_jax.evaluation.image_sets import CroppedImages, FolderImages, ImageSet, check_levels
from lit_jax.evaluation.measuring import Measured, choose
from lit_jax.evaluation.network import Network
from lit_jax.evaluation.npz_images import RECORD, SAMPLES, NpzImages, array_names, open_npz
from lit_jax.evaluation.statistics import (
    Statistics,
    has_statistics,
    read_about,
    read_kept,
    read_statistics,
    write_statistics,
)
from lit_jax.storage import files

SUFFIX = ".statistics.npz"


@dataclass(frozen=True)
class Reference:
    """A reference whose files have been checked, but not yet measured.

    `images` is None for a file with statistics only. `given` are the statistics in the file, which
    come before those of its images: an ADM file has the statistics of a whole data set and a part
    of its images. `kept` are the indices of the images for precision, recall and KID, in one of our
    own files those of the features it kept. Statistics of `images` go to files that begin with
    `cache`. `warnings` is what has to be said of the images.
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
    warnings: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash (hex) by which a changed reference is noticed: of the file, or of the
        images."""
        return files.sha256_file(self.name) if self.images is None else self.images.fingerprint()


def open_reference(config: ReferenceConfig, network: Network) -> Reference:
    """Raise ValueError for what is missing, no reference, or of another network."""
    path = Path(config.source).expanduser()
    images: ImageSet | None
    given = about = None
    if config.source.startswith(TFDS):
        kind, images = "tfds", _tfds_images(config)
        name, split = tfds_name(config.source)
        home, stem = Path(config.data_dir).expanduser(), f"{name.replace('/', '-')}-{split}"
    elif (path / RECORD).exists() or (path / SAMPLES).exists():
        kind, images = "samples", _sample_folder(path, config.resolution)
        home, stem = path.resolve().parent, path.resolve().name
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
        kept = _kept_features(path, about, config.images)
        return Reference(str(path), kind, network, None, given, about, 0, kept, None)
    if images.count < 2:
        raise ValueError(f"{config.source} holds 1 image; a reference needs 2 at least")
    warnings = check_levels(images)
    home = Path(config.cache_dir).expanduser() if config.cache_dir else home
    side = f"-{config.resolution}px" if config.resolution else ""
    cache = home / f"{stem}{side}-{network.sha256[:8]}-{network.config.preprocessing}"
    kept = choose(images.count, config.images or USUAL_IMAGES)
    return Reference(
        config.source, kind, network, images, given, None, config.resolution, kept, cache, warnings
    )


def _kept_features(path: Path, about: dict[str, Any] | None, wanted: int) -> np.ndarray:
    """Return which of the features in a file with statistics are used: `wanted` of them, 0 for
    all."""
    stored = 0 if about is None else int(about["kept"])
    # Asked for more than there are images, all of them are meant.
    if wanted > stored and (about is None or stored < about["images"]):
        raise ValueError(
            f"--reference_images {wanted}: {path} has statistics, and the features of {stored}"
            f" images; {'use at most so many' if stored else 'leave it out'}, or give the images"
        )
    return choose(stored, wanted or stored)


def _tfds_images(config: ReferenceConfig) -> ImageSet:
    # Imported where it is used: TFDS takes seconds.
    from lit_jax.data.registry import open_source

    name, split = tfds_name(config.source)
    source = open_source(SourceConfig(kind="tfds", path=config.data_dir, name=name, split=split))
    return CroppedImages(config.source, source, config.resolution)


def _folder_images(path: Path, resolution: int) -> ImageSet:
    if not resolution:
        return FolderImages(path)
    from lit_jax.data.sources.folders import ImageFolder

    source = ImageFolder(SourceConfig(kind="folder", path=str(path)))
    return CroppedImages(str(path), source, resolution)


def _sample_folder(path: Path, resolution: int) -> ImageSet:
    if not (path / RECORD).exists() or not (path / SAMPLES).exists():
        missing = SAMPLES if (path / RECORD).exists() else RECORD
        raise ValueError(
            f"{path} is a folder of samples without {missing}: not finished, or latents only; run"
            " the same sample command again, or sample images"
        )
    _refuse_crop(path, resolution)
    return NpzImages(path / SAMPLES)


def _refuse_crop(path: Path, resolution: int) -> None:
    if resolution:
        raise ValueError(
            f"--resolution {resolution} crops photographs of a folder or data set; the images of"
            f" {path} are taken as they are: leave it out"
        )


def _npz_reference(
    path: Path, resolution: int, network: Network
) -> tuple[str, ImageSet | None, Statistics | None, dict[str, Any] | None]:
    _refuse_crop(path, resolution)
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
    """Return what measured statistics depend on, as their file says it."""
    assert reference.images is not None
    return {
        "inception": reference.network.identity(),
        "fingerprint": fingerprint,
        "images": reference.images.count,
        "size": list(reference.images.size),
        "crop": "adm" if reference.resolution else None,
        "kept": len(reference.kept),
    }


def cache_file(reference: Reference, fingerprint: str) -> Path:
    """Return where measured statistics are kept. The name holds a hash of all they depend on, so
    that two jobs never write the same file with different content."""
    assert reference.cache is not None
    text = json.dumps(measured_from(reference, fingerprint), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return reference.cache.with_name(f"{reference.cache.name}-{digest}{SUFFIX}")


def is_cached(reference: Reference, fingerprint: str) -> bool:
    """Return whether nothing has to be measured: there are no images, or the statistics of these
    images, by this network, are there already.

    Raises ValueError when a file of somebody else has the name of the cache.
    """
    if reference.cache is None:
        return True
    cache = cache_file(reference, fingerprint)
    if not cache.exists():
        return False
    about = read_about(cache)
    if about is None:
        raise ValueError(f"{cache} is no file of lit_jax; move it, or choose another --cache_dir")
    return _agrees(about, measured_from(reference, fingerprint))


def _agrees(about: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in about and about[name] == value for name, value in wanted.items())


def check_cache(reference: Reference) -> None:
    """Raise ValueError unless the cache can be written, before hours of work are done for it."""
    assert reference.cache is not None
    folder = reference.cache.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{folder} cannot be written, where the statistics of {reference.name} would be kept;"
            " give another folder with --cache_dir"
        )


def write_cache(reference: Reference, measured: Measured, fingerprint: str, work: Path) -> Path:
    """Keep what was measured, in the file that is returned; `work` is a folder for the unfinished
    one."""
    cache = cache_file(reference, fingerprint)
    unfinished = work / "statistics.npz"
    about = measured_from(reference, fingerprint)
    about |= {"name": reference.name, "images_sha256": measured.images_sha256}
    with open(unfinished, "wb") as file:
        write_statistics(file, measured, about)
    # The same name for the same job: what a killed run leaves, the next one replaces.
    job = hashlib.sha256(str(work.resolve()).encode()).hexdigest()[:8]
    beside = cache.with_name(f".{cache.name}.{job}.tmp")
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(unfinished, beside)
    os.replace(beside, cache)
    return cache


@dataclass(frozen=True)
class Known:
    """All that is known of a reference once it was measured. `images`: statistics of its images
    where those in its file come first; `kept_KxD`: pool features, None without images."""

    statistics: Statistics
    images: Statistics | None
    kept_KxD: np.ndarray | None
    images_sha256: str | None


def read_known(reference: Reference, fingerprint: str) -> Known:
    """Return the statistics of a reference, from its file and from its cache.

    Raises ValueError when the cache is not, or no longer, that of this reference.
    """
    if reference.images is None:
        assert reference.given is not None
        if reference.about is None:
            return Known(reference.given, None, None, None)
        kept = read_kept(Path(reference.name))[reference.kept]
        return Known(reference.given, None, kept, reference.about["images_sha256"])
    cache = cache_file(reference, fingerprint)
    about = read_about(cache) if cache.exists() else None
    if about is None or not _agrees(about, measured_from(reference, fingerprint)):
        raise ValueError(f"{cache} was replaced while this ran; run the same command again")
    measured = read_statistics(cache, reference.network)
    kept = read_kept(cache)
    if reference.given is None:
        return Known(measured, None, kept, about["images_sha256"])
    return Known(reference.given, measured, kept, about["images_sha256"])
