"""Statistics of a reference: those in files of the ADM suite, and our own, which say what they are.

Both are npz files with `mu`, `sigma` (pool features) and `mu_s`, `sigma_s` (sFID). Ours have two
arrays more: `kept`, pool features of some images for precision, recall and KID, and `about`, a JSON
text with the network, the images and the preparation behind the numbers.

Letters: D features, K images whose features are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_jax.evaluation.measuring import Measured
from lit_jax.evaluation.network import SPATIAL_FEATURES, Network
from lit_jax.evaluation.npz_images import array_names, open_npz, readable
from lit_jax.evaluation.scores import Moments

VERSION = 1


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D], float64."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Statistics:
    """Statistics of a reference. `spatial` is None in files without sFID statistics, `count`
    (images behind the Gaussians) where the file does not say."""

    pool: Gaussian
    spatial: Gaussian | None
    count: int | None


def of_measured(measured: Measured) -> Statistics:
    """Return the statistics of images. Raises ValueError for a single one."""
    return Statistics(_gaussian(measured.pool), _gaussian(measured.spatial), measured.count)


def _gaussian(moments: Moments) -> Gaussian:
    return Gaussian(moments.mean, moments.covariance)


def has_statistics(path: Path) -> bool:
    """Return whether an npz holds a mean and a covariance."""
    with open_npz(path) as archive:
        names = set(array_names(archive))
    if ("mu" in names) != ("sigma" in names):
        raise ValueError(f"{path} holds {sorted(names)}; mu and sigma belong together")
    return "mu" in names


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what one of our own files says of itself; None for other files."""
    with open_npz(path) as archive:
        if "about" not in array_names(archive):
            return None
    try:
        about: dict[str, Any] = json.loads(str(_array(path, "about")))
        version = about["version"]
    except (json.JSONDecodeError, TypeError, KeyError):
        return None
    if version != VERSION:
        raise ValueError(
            f"{path} is of version {version}, not {VERSION}; remove it, and it is made"
            " again from the images"
        )
    return about


def read_statistics(path: Path, network: Network) -> Statistics:
    """Return the statistics in `path`. Raises ValueError when they cannot be those of `network`."""
    about = read_about(path)
    if about is not None and about["inception"] != network.identity():
        theirs, ours = about["inception"], network.identity()
        raise ValueError(
            f"{path} holds statistics of another network: Inception {theirs['sha256'][:12]} with"
            f" preprocessing {theirs['preprocessing']}, but {network.name} is {ours['sha256'][:12]}"
            f" with {ours['preprocessing']}; use the same --inception, or make them again from the"
            " images"
        )
    with open_npz(path) as archive:
        names = array_names(archive)
    pool = _read_gaussian(path, "mu", "sigma", network.dimensions)
    spatial = None
    if "mu_s" in names and "sigma_s" in names:
        spatial = _read_gaussian(path, "mu_s", "sigma_s", SPATIAL_FEATURES)
    return Statistics(pool, spatial, None if about is None else int(about["count"]))


def read_kept(path: Path) -> np.ndarray:
    """Return pool features [K, D] in one of our own files."""
    return _array(path, "kept")


def write_statistics(file: Any, measured: Measured, about: Mapping[str, Any]) -> None:
    """Write one of our own files into an open binary file. `about` gets the version and counts."""
    statistics = of_measured(measured)
    assert statistics.spatial is not None
    text = json.dumps({"version": VERSION, **about, "count": measured.count}, sort_keys=True)
    np.savez(
        file,
        mu=statistics.pool.mean,
        sigma=statistics.pool.covariance,
        mu_s=statistics.spatial.mean,
        sigma_s=statistics.spatial.covariance,
        kept=measured.kept_KxD,
        about=np.asarray(text),
    )


def _read_gaussian(path: Path, mean: str, covariance: str, dimensions: int) -> Gaussian:
    mu = _array(path, mean).astype(np.float64)
    sigma = _array(path, covariance).astype(np.float64)
    if mu.shape != (dimensions,) or sigma.shape != (dimensions, dimensions):
        raise ValueError(
            f"{path} holds statistics of another network: {mean} {mu.shape} and {covariance}"
            f" {sigma.shape}, but --inception has {dimensions} features"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{mean} or {covariance} of {path} contains NaN or infinite values")
    return Gaussian(mu, sigma)


def _array(path: Path, name: str) -> np.ndarray:
    with readable(path), np.load(path) as stored:
        array: np.ndarray = stored[name]
        return array
