"""Checks with known answers: of the scores, of the features, and of the statistics of a reference.

Letters: N images, H height, W width, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from lit_jax.evaluation import scores
from lit_jax.evaluation.image_sets import ArrayImages
from lit_jax.evaluation.network import FeatureExtractor
from lit_jax.evaluation.statistics import Gaussian

# Images that are looked at; enough for every check, and quick without an accelerator.
IMAGES = 128
_SYNTHETIC = 64  # pixels along a side of images that are made up
_NOISE = (4.0, 16.0, 48.0)  # standard deviation in grey levels
_BLUR = (0.5, 1.5, 4.0)  # radius in pixels

# Distances are differences of large sums: zero is known to this part of the trace.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Check:
    """`found` passes between `low` and `high`; `expected` says so in words."""

    name: str
    expected: str
    found: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.found <= self.high

    def line(self) -> str:
        mark = "ok" if self.passed else "FAILED"
        return f"  {self.name:<44}{self.expected:>18}{self.found:>16.6g}  {mark}"


HEAD = f"  {'check':<44}{'expected':>18}{'found':>16}"


def _close(name: str, expected: float, found: float, tolerance: float) -> Check:
    return Check(name, f"{expected:.6g}", found, expected - tolerance, expected + tolerance)


def _more(name: str, than: float, found: float) -> Check:
    return Check(name, f"> {than:.6g}", found, math.nextafter(than, math.inf), math.inf)


def score_checks() -> Iterator[Check]:
    """Yield the formulas, on made-up features and logits. No images, no network."""
    features = np.random.default_rng(0).normal(size=(500, 32)) @ np.diag(np.linspace(0.1, 3, 32))
    moments = scores.moments(features)
    yield from gaussian_checks("scores: FID", Gaussian(moments.mean, moments.covariance))
    same = scores.precision_recall(features, features)
    yield _close("scores: precision of a set against itself", 1.0, same.precision, 0.0)
    yield _close("scores: recall of a set against itself", 1.0, same.recall, 0.0)
    far = scores.precision_recall(features, features + 1e3)
    yield _close("scores: precision far away", 0.0, far.precision, 0.0)
    yield _close("scores: recall far away", 0.0, far.recall, 0.0)
    # The unbiased estimate of a set against itself lacks the pairs of an example with itself.
    kernel = (features @ features.T / features.shape[1] + 1.0) ** 3
    itself = 2.0 * (kernel.mean() - np.trace(kernel) / len(kernel)) / (len(kernel) - 1)
    distance = scores.kernel_distance(features, features)
    yield _close("scores: KID of a set against itself", itself, distance, 1e-9 * abs(itself))
    classes = 50.0 * np.eye(20)[np.arange(400) % 20]
    sure = scores.inception_score(classes)
    yield _close("scores: Inception Score, 20 sure classes", 20.0, sure.mean, 1e-6)
    unsure = scores.inception_score(np.zeros((400, 20)))
    yield _close("scores: Inception Score, no idea", 1.0, unsure.mean, 1e-12)


def gaussian_checks(name: str, gaussian: Gaussian) -> Iterator[Check]:
    """Yield distances of a Gaussian to itself, moved by a vector v, and with its spread doubled: 0,
    |v|^2 and the trace of the covariance."""
    mean, covariance = gaussian
    trace = float(np.trace(covariance))
    shift = np.random.default_rng(1).normal(size=len(mean)) * math.sqrt(trace / len(mean))
    cases = {
        "itself": (0.0, mean, covariance),
        "moved by v: |v|^2": (float(shift @ shift), mean + shift, covariance),
        "spread doubled: trace": (trace, mean, 4.0 * covariance),
    }
    for case, (expected, other_mean, other_covariance) in cases.items():
        found = scores.frechet_distance(mean, covariance, other_mean, other_covariance)
        yield _close(f"{name}, {case}", expected, found, _ROUNDING * trace)


def image_checks(images_NxHxWx3: np.ndarray, extractor: FeatureExtractor) -> Iterator[Check]:
    """Yield features of images, of the same in another order, and of images that get worse."""
    pool_NxD = _pool(images_NxHxWx3, extractor)
    again_NxD = _pool(images_NxHxWx3[::-1], extractor)[::-1]
    largest = float(np.abs(pool_NxD).max())
    change = float(np.abs(pool_NxD - again_NxD).max()) / largest
    yield _close("images: features in another batch, relative", 0.0, change, 1e-4)
    base = scores.moments(pool_NxD)
    trace = float(np.trace(base.covariance))
    itself = scores.moments_distance(base, scores.moments(again_NxD))
    yield _close("images: FID against themselves", 0.0, itself, 1e-4 * trace)
    same = scores.precision_recall(pool_NxD, pool_NxD)
    yield _close("images: precision against themselves", 1.0, same.precision, 0.0)
    yield _close("images: recall against themselves", 1.0, same.recall, 0.0)
    damages: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
        "noise": (_noisy, _NOISE),
        "blur": (_blurred, _BLUR),
    }
    for name, (damage, levels) in damages.items():
        last = itself
        for level in levels:
            found_NxD = _pool(damage(images_NxHxWx3, level), extractor)
            found = scores.moments_distance(base, scores.moments(found_NxD))
            yield _more(f"images: FID with {name} of {level:g}", last, found)
            last = found


def synthetic_images(count: int = IMAGES) -> np.ndarray:
    """Return smooth pictures that nobody needs to download: uint8 [count, 64, 64, 3]."""
    coarse = np.random.default_rng(2).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    side = (_SYNTHETIC, _SYNTHETIC)
    pictures = (Image.fromarray(c).resize(side, Image.Resampling.BICUBIC) for c in coarse)
    return np.stack([np.asarray(picture) for picture in pictures])


def _pool(images_NxHxWx3: np.ndarray, extractor: FeatureExtractor) -> np.ndarray:
    images = ArrayImages("images of the self test", images_NxHxWx3)
    batches = extractor.features(images, 0, images.count)
    return np.concatenate([found.pool_BxD for _, found in batches]).astype(np.float64)


def _noisy(images_NxHxWx3: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0.0, level, images_NxHxWx3.shape)
    return np.clip(np.rint(images_NxHxWx3 + noise), 0, 255).astype(np.uint8)


def _blurred(images_NxHxWx3: np.ndarray, radius: float) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images_NxHxWx3])
