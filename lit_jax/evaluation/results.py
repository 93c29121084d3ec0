"""The scores of samples against a reference, with what must be said about them.

Letters: N images, D features, K images whose features are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lit_jax.evaluation import scores
from lit_jax.evaluation.measuring import Measured
from lit_jax.evaluation.reference import Known
from lit_jax.evaluation.statistics import Statistics, of_measured

Log = Callable[[str], None]

NEIGHBOURS = 3
SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 0

# Published numbers compare 50,000 samples; below this many the bias of the distances is large.
FEW, USUAL = 10_000, 50_000

# A mean of n random images is about sqrt(trace of the covariance / n) away from that of the data
# set: 1 is expected of the square, this much is no chance.
_ODD_MEAN = 3.0

TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "inception_score_std": "  std over splits",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "kid_subset_mean": "  mean of subsets",
    "kid_subset_std": "  std of subsets",
}
"""Score -> how the table calls it."""


@dataclass(frozen=True)
class Scores:
    """`values` has a number, or None, for every row of TITLES; `absent` says why there is none."""

    values: dict[str, float | None]
    absent: dict[str, str]


def score(samples: Measured, reference: Known, splits: int, log: Log) -> Scores:
    """Return all scores that the reference allows. Raises ValueError for a single sample and for
    empty splits of the Inception Score."""
    ours, theirs = of_measured(samples), reference.statistics
    values: dict[str, float | None] = dict.fromkeys(TITLES)
    absent: dict[str, str] = {}
    log("Inception Score, FID, sFID")
    quality = scores.inception_score(samples.logits_NxL, splits)
    values["inception_score"], values["inception_score_std"] = quality.mean, quality.std
    values["fid"] = scores.frechet_distance(*ours.pool, *theirs.pool)
    if theirs.spatial is None or ours.spatial is None:
        absent["sfid"] = "the reference has no mu_s and sigma_s"
    else:
        values["sfid"] = scores.frechet_distance(*ours.spatial, *theirs.spatial)
    _score_pairs(samples.kept_KxD, reference.kept_KxD, values, absent, log)
    return Scores(values, absent)


def _score_pairs(
    samples_NxD: np.ndarray,
    kept_KxD: np.ndarray | None,
    values: dict[str, float | None],
    absent: dict[str, str],
    log: Log,
) -> None:
    """Compute the scores that compare every sample with every image of the reference."""
    pairwise = ("precision", "recall", "kid", "kid_subset_mean", "kid_subset_std")
    if kept_KxD is None:
        absent |= dict.fromkeys(pairwise, "the reference has statistics only, no images")
        return
    fewest = min(len(samples_NxD), len(kept_KxD))
    log(f"precision, recall and KID: {len(samples_NxD):,} x {len(kept_KxD):,} images")
    if fewest > NEIGHBOURS:
        found = scores.precision_recall(kept_KxD, samples_NxD, NEIGHBOURS)
        values["precision"], values["recall"] = found
    else:
        reason = f"{NEIGHBOURS + 1} images are needed on both sides; there are {fewest}"
        absent |= dict.fromkeys(("precision", "recall"), reason)
    if fewest > 1:
        values["kid"] = scores.kernel_distance(samples_NxD, kept_KxD)
    else:
        absent["kid"] = "2 images are needed on both sides"
    if fewest >= SUBSET_SIZE:
        mean, std = scores.kernel_distance_of_subsets(
            samples_NxD, kept_KxD, SUBSETS, SUBSET_SIZE, SUBSET_SEED
        )
        values["kid_subset_mean"], values["kid_subset_std"] = mean, std
    else:
        reason = f"subsets of {SUBSET_SIZE:,} images; there are {fewest:,}"
        absent |= dict.fromkeys(("kid_subset_mean", "kid_subset_std"), reason)


def count_warnings(count: int, dimensions: int, what: str) -> list[str]:
    """Return what has to be said of the number of images behind a mean and a covariance."""
    if count >= FEW:
        return []
    text = (
        f"{count:,} {what}: FID and sFID of few images are too large, and only comparable between"
        f" equal counts; published numbers use {USUAL:,} samples"
    )
    if count <= dimensions:
        text += (
            f". The covariance of {count:,} images has a rank of at most {count - 1:,}, of"
            f" {dimensions:,}"
        )
    return [text]


def mean_mismatch(statistics: Statistics, images: Statistics) -> float:
    """Return n |difference of the means|^2 / trace of the covariance, for statistics of a data set
    and of n of its images: about 1 when both come from the same network and the images were drawn
    at random."""
    gap = images.pool.mean - statistics.pool.mean
    assert images.count is not None
    return float(images.count * (gap @ gap) / np.trace(statistics.pool.covariance))


def mismatch_warnings(mismatch: float) -> list[str]:
    """Return what has to be said of a `mean_mismatch`."""
    if mismatch <= _ODD_MEAN:
        return []
    return [
        f"the images in the reference file have a mean that is {mismatch:.3g} times as far from its"
        " statistics as chance allows: those were made with another network or preprocessing, or"
        " from other images; do not trust FID and sFID"
    ]
