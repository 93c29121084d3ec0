"""Everything the scores need to know of a set of images, gathered in parts that survive a kill.

A part is a run of consecutive images and one file. Parts depend on the number of images alone:
hosts share them out, a resumed run makes those that are missing, and they are merged in their
order, so that none of this changes the result.

Letters: N images, K images whose features are kept, D features of the pool, L logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.evaluation.image_sets import ImageSet
from lit_jax.evaluation.network import SPATIAL_FEATURES, FeatureExtractor
from lit_jax.evaluation.npz_images import readable
from lit_jax.evaluation.scores import Moments
from lit_jax.runs.progress import Progress
from lit_jax.storage import files

# At most this many parts, because each holds a covariance; at least so many images in each.
_PARTS, _SMALLEST = 32, 16
# Larger parts are a multiple of this, so that batches of usual sizes fill them.
_ROUND = 512
# Rows of features that enter the moments at a time. Fixed, so that the size of a batch does not
# change how sums are rounded.
_ROWS = 2048

_DIGEST = 32  # bytes of a sha256


@dataclass(frozen=True)
class Measured:
    """`count` images: moments of pool and spatial features, features of the images that were
    asked for, logits without bias (of none or all), the hash of all pixels, and the devices."""

    count: int
    pool: Moments
    spatial: Moments
    kept_KxD: np.ndarray
    logits_NxL: np.ndarray
    images_sha256: str
    devices: str


def part_spans(count: int) -> list[tuple[int, int]]:
    """Return first and last + 1 of every part of `count` images."""
    size = max(-(-count // _PARTS), _SMALLEST)
    if size > _ROUND:
        size = -(-size // _ROUND) * _ROUND
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def choose(count: int, wanted: int) -> np.ndarray:
    """Return the indices, increasing, of `wanted` of `count` images: all, or a random choice that
    is always the same. Data sets are sorted by class, so the first ones would be no fair choice."""
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))


def write_parts(
    images: ImageSet,
    extractor: FeatureExtractor,
    folder: Path,
    kept: np.ndarray,
    with_logits: bool,
    share: tuple[int, int],
    progress: Progress,
) -> None:
    """Write the parts of this host that are not there yet.

    `kept` are the indices of the images whose pool features are stored, `share` is (index of this
    host, number of hosts).
    """
    for number, (first, last) in enumerate(part_spans(images.count)):
        if number % share[1] != share[0]:
            continue
        path = _part_path(folder, number)
        if path.exists():
            progress.found(last - first)
            continue
        chosen = kept[(kept >= first) & (kept < last)] - first
        part = _measure_part(images, extractor, first, last, chosen, with_logits, progress)
        with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **part)  # type: ignore[arg-type]


def missing_parts(folder: Path, count: int) -> int:
    """Return how many parts of `count` images are not in `folder`."""
    return sum(not _part_path(folder, i).exists() for i in range(len(part_spans(count))))


def merge_parts(folder: Path, count: int) -> Measured:
    """Return what all parts know together. Raises ValueError for a damaged part."""
    pool: Moments | None = None
    spatial = Moments(SPATIAL_FEATURES)
    kept, logits, devices, digest = [], [], set(), hashlib.sha256()
    for number in range(len(part_spans(count))):
        part = _read_part(_part_path(folder, number))
        pool_part = _moments(part, "pool")
        pool = pool if pool is not None else Moments(len(pool_part.mean))
        pool.merge(pool_part)
        spatial.merge(_moments(part, "spatial"))
        kept.append(part["kept"])
        logits.append(part["logits"])
        digest.update(part["digests"].tobytes())
        devices.add(str(part["devices"]))
    assert pool is not None  # an image set has images
    return Measured(
        count,
        pool,
        spatial,
        np.concatenate(kept),
        np.concatenate(logits),
        digest.hexdigest(),
        ", ".join(sorted(devices)),
    )


def _measure_part(
    images: ImageSet,
    extractor: FeatureExtractor,
    first: int,
    last: int,
    chosen: np.ndarray,
    with_logits: bool,
    progress: Progress,
) -> dict[str, np.ndarray]:
    digests = bytearray()
    pool, spatial, kept, logits = _Sum(), _Sum(), [], []
    for batch_BxHxWx3, found in extractor.features(images, first, last):
        for image_HxWx3 in batch_BxHxWx3:
            digests += hashlib.sha256(image_HxWx3.tobytes()).digest()
        start = len(digests) // _DIGEST - len(batch_BxHxWx3)
        inside = chosen[(chosen >= start) & (chosen < start + len(batch_BxHxWx3))] - start
        kept.append(found.pool_BxD[inside])
        logits.append(found.logits_BxL if with_logits else found.logits_BxL[:0])
        pool.add(found.pool_BxD)
        spatial.add(found.spatial_BxS)
        progress.advance(len(batch_BxHxWx3))
    return {
        "kept": np.concatenate(kept),
        "logits": np.concatenate(logits),
        "digests": np.frombuffer(bytes(digests), np.uint8),
        "devices": np.asarray(extractor.devices),
        **{f"pool_{name}": array for name, array in pool.finish().packed().items()},
        **{f"spatial_{name}": array for name, array in spatial.finish().packed().items()},
    }


class _Sum:
    """Moments of rows that come in batches, taken in at _ROWS at a time."""

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._waiting: list[np.ndarray] = []

    def add(self, rows_BxD: np.ndarray) -> None:
        self._waiting.append(rows_BxD)
        if sum(map(len, self._waiting)) >= _ROWS:
            rows = np.concatenate(self._waiting)
            whole = len(rows) // _ROWS * _ROWS
            for start in range(0, whole, _ROWS):
                self._update(rows[start : start + _ROWS])
            self._waiting = [rows[whole:]]

    def finish(self) -> Moments:
        self._update(np.concatenate(self._waiting))
        assert self._moments is not None
        return self._moments

    def _update(self, rows_BxD: np.ndarray) -> None:
        if self._moments is None:
            self._moments = Moments(rows_BxD.shape[1])
        self._moments.update(rows_BxD)


def _moments(part: dict[str, np.ndarray], name: str) -> Moments:
    keys: Sequence[str] = ("count", "mean", "scatter")
    return Moments.unpacked(**{key: part[f"{name}_{key}"] for key in keys})


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:02d}.npz"


def _read_part(path: Path) -> dict[str, Any]:
    remedy = "remove it and run the same command again"
    with readable(path, remedy), np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
