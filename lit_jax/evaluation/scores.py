"""Scores of a set of features against another, in numpy float64.

Fréchet distance (FID, sFID) from streamed moments, Inception Score, kernel distance (KID); those
that look at neighbours (precision and recall) are in `neighbours`.

Letters: N examples, D features, R rank, L logits, M examples of a block.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lit_jax.evaluation.neighbours import PrecisionRecall, precision_recall

__all__ = [
    "InceptionScore",
    "Moments",
    "PrecisionRecall",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "moments",
    "moments_distance",
    "precision_recall",
]

# Rows of a block of a kernel matrix: 134 MB in float64.
_BLOCK = 4096


class Moments:
    """Mean and covariance of features that arrive in pieces, in float64.

    Pieces are merged with the pairwise update of Chan, Golub and LeVeque (1979), which does not
    subtract large sums, so the result does not depend on how the examples were divided.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimensions)
        self._scatter = np.zeros((dimensions, dimensions))  # sum of (x - mean)(x - mean)^T

    def update(self, features_NxD: np.ndarray) -> None:
        """Add the rows of float [N, D]. Raises ValueError for another D or non-finite values."""
        values_NxD = np.asarray(features_NxD, np.float64)
        if values_NxD.ndim != 2 or values_NxD.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {values_NxD.shape}, not [N, {len(self.mean)}]")
        if not np.isfinite(values_NxD).all():
            raise ValueError("features contain NaN or infinite values")
        if len(values_NxD) == 0:
            return
        mean = values_NxD.mean(axis=0)
        centred_NxD = values_NxD - mean
        self._merge(len(values_NxD), mean, centred_NxD.T @ centred_NxD)

    def merge(self, other: Moments) -> None:
        """Add the examples of `other`. Raises ValueError for another D."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"moments of {len(other.mean)} features, not {len(self.mean)}")
        if other.count:
            self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        shift = mean - self.mean
        total = self.count + count
        self._scatter += scatter
        self._scatter += np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def packed(self) -> dict[str, np.ndarray]:
        """Return `count` [], `mean` [D] and the lower triangle of the `scatter` [D (D + 1) / 2]."""
        lower = self._scatter[np.tril_indices(len(self.mean))]
        return {"count": np.asarray(self.count), "mean": self.mean, "scatter": lower}

    @classmethod
    def unpacked(cls, count: np.ndarray, mean: np.ndarray, scatter: np.ndarray) -> Moments:
        """Return what `packed` gave."""
        result = cls(len(mean))
        result.count, result.mean = int(count), mean
        rows, columns = np.tril_indices(len(mean))
        result._scatter[rows, columns] = scatter
        result._scatter[columns, rows] = scatter
        return result

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D] (divided by N - 1). Raises ValueError below two examples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 examples; there are {self.count}")
        return self._scatter / (self.count - 1)


def moments(features_NxD: ArrayLike) -> Moments:
    """Return the moments of one array of features [N, D]."""
    values_NxD = np.atleast_1d(features_NxD)
    result = Moments(values_NxD.shape[-1])
    result.update(values_NxD)
    return result


def _factor(matrix_DxD: np.ndarray) -> np.ndarray:
    """Return L [R, D] with L^T L the positive semi-definite matrix, R its numerical rank.

    Cholesky's factor; with pivoting (Higham, 2002, section 10.3) where rounding noise would take
    part, as in the covariance of fewer examples than features. That costs R^2 D, so little for few
    examples.
    """
    size = len(matrix_DxD)
    rest = np.diagonal(matrix_DxD).copy()
    noise = size * np.finfo(np.float64).eps * max(float(rest.max()), 0.0)
    with contextlib.suppress(np.linalg.LinAlgError):
        lower = np.linalg.cholesky(matrix_DxD)
        if np.square(np.diagonal(lower)).min() > noise:
            return lower.T
    factor_RxD = np.zeros((size, size))
    for row in range(size):
        pivot = int(np.argmax(rest))
        if rest[pivot] <= noise:
            return factor_RxD[:row]
        above = factor_RxD[:row]
        factor_RxD[row] = (matrix_DxD[pivot] - above[:, pivot] @ above) / np.sqrt(rest[pivot])
        rest -= factor_RxD[row] ** 2
        rest[pivot] = -np.inf
    return factor_RxD


def frechet_distance(
    mean_a: ArrayLike, covariance_a: ArrayLike, mean_b: ArrayLike, covariance_b: ArrayLike
) -> float:
    """Return squared Fréchet (2-Wasserstein) distance of two Gaussians, the formula behind FID.

    |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^1/2 S_b S_a^1/2)^1/2

    (Dowson and Landau, 1982; Heusel et al., 2017). The last trace is the nuclear norm of
    L_a L_b^T for any factors S = L^T L, a sum of singular values: real by construction and accurate
    for rank-deficient covariances, where a general matrix square root is not. Means [D],
    covariances [D, D], or numbers where D is 1; the unit is that of the squared features. Rounding
    below zero is cut to 0.0. Raises ValueError for other shapes and for values that are not finite.
    """
    means = [np.atleast_1d(np.asarray(mean, np.float64)) for mean in (mean_a, mean_b)]
    covariances = [np.atleast_2d(np.asarray(c, np.float64)) for c in (covariance_a, covariance_b)]
    size = means[0].size
    shapes = [array.shape for array in (*means, *covariances)]
    if shapes != [(size,)] * 2 + [(size, size)] * 2 or size == 0:
        raise ValueError(
            f"means {shapes[0]} and {shapes[1]}, covariances {shapes[2]} and {shapes[3]}: [D] and"
            " [D, D] with one D are needed"
        )
    if not all(np.isfinite(array).all() for array in (*means, *covariances)):
        raise ValueError("a mean or a covariance contains NaN or infinite values")
    gap, (cov_a, cov_b) = means[0] - means[1], covariances
    cross = np.linalg.svd(_factor(cov_a) @ _factor(cov_b).T, compute_uv=False).sum()
    distance = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    return max(float(distance), 0.0)


def moments_distance(a: Moments, b: Moments) -> float:
    """Return `frechet_distance` of two accumulated sets."""
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


class InceptionScore(NamedTuple):
    """Mean and population standard deviation of the `scores` of the splits."""

    mean: float
    std: float
    scores: tuple[float, ...]


def inception_score(
    logits_NxL: ArrayLike, splits: int = 10, split_size: int | None = None
) -> InceptionScore:
    """Return exp of the mean KL(p(y|x) || p(y)) over the examples of a split (Salimans et al.,
    2016).

    Takes logits [N, L], whose softmax is p(y|x); the ADM suite takes those without bias. A split is
    a run of consecutive examples: `splits` of them, the i-th from i N // splits on, or as many of
    `split_size` as are needed, the last one shorter (the ADM suite: 5000). Both are the same for
    50,000 examples and ten splits. Raises ValueError for a split without examples and for values
    that are not finite.
    """
    logits_NxL = np.asarray(logits_NxL)
    if logits_NxL.ndim != 2 or not np.isfinite(logits_NxL).all():
        raise ValueError(f"logits of shape {logits_NxL.shape}: finite numbers [N, L] are needed")
    count = len(logits_NxL)
    if split_size is None:
        if splits < 1 or count < splits:
            raise ValueError(
                f"{count} examples leave some of {splits} splits of the Inception Score empty; use"
                f" more examples or at most {count} splits"
            )
        bounds = [i * count // splits for i in range(splits + 1)]
    else:
        if split_size < 1 or count < 1:
            raise ValueError(f"{count} examples in splits of {split_size}: at least 1 of each")
        bounds = [*range(0, count, split_size), count]
    pairs = zip(bounds[:-1], bounds[1:], strict=True)
    scores = tuple(_score_of_split(logits_NxL[first:last]) for first, last in pairs)
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), scores)


def _score_of_split(logits_NxL: np.ndarray) -> float:
    shifted = logits_NxL.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    # A class that no example has (underflow) contributes nothing.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    return float(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Return kernel Inception distance (Binkowski et al., 2018): the unbiased estimate of the
    squared MMD with the kernel (x.y / D + 1)^3.

    Features [N, D]; the whole kernel matrices are summed, block by block. May be negative. Raises
    ValueError below two examples, for unequal D and for values that are not finite.
    """
    a, b = np.asarray(features_a), np.asarray(features_b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features {a.shape} and {b.shape}; [N, D] with N of at least 2 is needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features contain NaN or infinite values")
    within = _kernel_mean_of_pairs(a) + _kernel_mean_of_pairs(b)
    across = sum(
        _kernel(a[i : i + _BLOCK], b[j : j + _BLOCK]).sum()
        for i in range(0, len(a), _BLOCK)
        for j in range(0, len(b), _BLOCK)
    )
    return float(within - 2.0 * across / (len(a) * len(b)))


def _kernel(x_MxD: np.ndarray, y_MxD: np.ndarray) -> np.ndarray:
    values = x_MxD.astype(np.float64) @ y_MxD.astype(np.float64).T
    values /= x_MxD.shape[1]
    values += 1.0
    return values**3


def _kernel_mean_of_pairs(x_NxD: np.ndarray) -> float:
    """Return mean over all pairs of two different examples."""
    total = 0.0
    for i in range(0, len(x_NxD), _BLOCK):
        rows = x_NxD[i : i + _BLOCK]
        block = _kernel(rows, rows)
        total += block.sum() - np.trace(block)
        for j in range(i + _BLOCK, len(x_NxD), _BLOCK):
            total += 2.0 * _kernel(rows, x_NxD[j : j + _BLOCK]).sum()
    return float(total / (len(x_NxD) * (len(x_NxD) - 1)))


def kernel_distance_of_subsets(
    features_a: ArrayLike,
    features_b: ArrayLike,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return mean and standard deviation of `kernel_distance` over pairs of random subsets.

    The usual way to report KID; the standard deviation is that of one pair of subsets. Subset i is
    a function of `seed` and i. Raises ValueError when a set has fewer than `size` examples.
    """
    a, b = np.asarray(features_a), np.asarray(features_b)
    if min(len(a), len(b)) < size:
        raise ValueError(f"sets of {len(a)} and {len(b)} examples have no subsets of {size}")
    values = []
    for index in range(subsets):
        generator = np.random.default_rng((seed, index))
        pick_a = generator.choice(len(a), size, replace=False)
        pick_b = generator.choice(len(b), size, replace=False)
        values.append(kernel_distance(a[pick_a], b[pick_b]))
    return float(np.mean(values)), float(np.std(values))
