"""Images and networks for tests of the evaluation, and the scores written a second time.

The second implementation shares nothing with the package: whole matrices, numpy.cov,
scipy.linalg.sqrtm, sorting.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.linalg import sqrtm

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.inception.config import InceptionConfig
from support.inception_cases import TINY, tiny_weights


def save_inception(path: Path, config: InceptionConfig = TINY, seed: int = 0) -> Path:
    """A model folder with the tiny Inception, through the converter's key table."""
    params, _ = import_params(tiny_weights(config, seed), config)
    save_model_dir(path, config, params, {"source": "random"})
    return path


def pictures(count: int, seed: int = 0, side: int = 24) -> np.ndarray:
    """Smooth pictures, uint8 [count, side, side, 3]."""
    shape = (count, 4, 4, 3)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    size, cubic = (side, side), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(c).resize(size, cubic)) for c in coarse])


def save_pngs(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:06d}.png")
    return folder


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # singular, for fewer rows than columns
        root = np.real(sqrtm(cov_a @ cov_b))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [N, M] as sums of squared differences."""
    return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)


def precision_recall(reference: np.ndarray, samples: np.ndarray, k: int = 3) -> tuple[float, float]:
    """With the k-th of the sorted distances that include an example's own zero."""
    ball_r = np.sort(distances(reference, reference), axis=1)[:, k]
    ball_s = np.sort(distances(samples, samples), axis=1)[:, k]
    across = distances(samples, reference)
    return float((across <= ball_r).any(1).mean()), float((ball_s >= across.T).any(1).mean())


def inception_score(logits: np.ndarray, bounds: list[int]) -> tuple[float, float]:
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    values = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        part = p[first:last]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        values.append(np.exp(kl.sum(1).mean()))
    return float(np.mean(values)), float(np.std(values))


def kid(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3

    def off_diagonal(x: np.ndarray) -> Any:
        return kernel(x, x)[~np.eye(len(x), dtype=bool)].mean()

    return float(off_diagonal(a) + off_diagonal(b) - 2 * kernel(a, b).mean())


def frechet_from_rows(a: np.ndarray, b: np.ndarray) -> float:
    """Without covariances or square roots: with centred rows A and B, scaled so that A^T A and
    B^T B are the covariances, the cross term is the nuclear norm of A B^T. For few wide rows."""
    gap = a.astype(np.float64).mean(0) - b.astype(np.float64).mean(0)
    rows_a, rows_b = ((x - x.mean(0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (a, b))
    cross = np.linalg.svd(rows_a @ rows_b.T, compute_uv=False).sum()
    return float(gap @ gap + (rows_a**2).sum() + (rows_b**2).sum() - 2 * cross)
