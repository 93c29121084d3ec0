"""Fréchet distance between two sets of features, from streamed float64 moments.

Letters: N examples, D features.
"""

from __future__ import annotations

import numpy as np

from lit_jax.evaluation import features


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
        """Adds the rows of float [N, D]. Raises ValueError for another D or non-finite values."""
        values_NxD = np.asarray(features_NxD, np.float64)
        if values_NxD.ndim != 2 or values_NxD.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {values_NxD.shape}, not [N, {len(self.mean)}]")
        if not np.isfinite(values_NxD).all():
            raise ValueError("features contain NaN or infinite values")
        new = len(values_NxD)
        if new == 0:
            return
        new_mean = values_NxD.mean(axis=0)
        centred_NxD = values_NxD - new_mean
        shift = new_mean - self.mean
        total = self.count + new
        between = np.outer(shift, shift) * (self.count * new / total)
        self._scatter += centred_NxD.T @ centred_NxD + between
        self.mean = self.mean + shift * (new / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D] (divided by N - 1). Raises ValueError below two examples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 examples; there are {self.count}")
        return self._scatter / (self.count - 1)


def moments(features_NxD: np.ndarray) -> Moments:
    """The moments of one array of features [N, D]."""
    result = Moments(np.asarray(features_NxD).shape[-1])
    result.update(features_NxD)
    return result


def _symmetric_sqrt(matrix_DxD: np.ndarray) -> np.ndarray:
    """The positive semi-definite square root; eigenvalues below rounding noise count as zero."""
    values, vectors = np.linalg.eigh((matrix_DxD + matrix_DxD.T) / 2)
    noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    roots = np.sqrt(np.where(values > noise, values, 0.0))
    return (vectors * roots) @ vectors.T


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians, the formula behind FID.

    |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a^1/2 S_b S_a^1/2)^1/2

    (Dowson and Landau, 1982; Heusel et al., 2017). The last trace is the nuclear norm of
    S_a^1/2 S_b^1/2, a sum of singular values: real by construction and accurate for rank-deficient
    covariances, where a general matrix square root is not. Means [D], covariances [D, D]; the unit
    is that of the squared features. Rounding below zero is cut to 0.0.
    """
    gap = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    cov_a, cov_b = np.asarray(covariance_a, np.float64), np.asarray(covariance_b, np.float64)
    cross = np.linalg.svd(_symmetric_sqrt(cov_a) @ _symmetric_sqrt(cov_b), compute_uv=False).sum()
    distance = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    return max(float(distance), 0.0)


def moments_distance(a: Moments, b: Moments) -> float:
    """`frechet_distance` of two accumulated sets."""
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def digit_frechet_distance(images_a: np.ndarray, images_b: np.ndarray) -> float:
    """Fréchet digit distance (FDD): uint8 digits [N, 8, 8, 1] compared in the space "digit-96".

    Not FID, and not comparable with any FID: the features are pixels and pooled differences in
    [0, 1], not activations of Inception. Like every Fréchet distance of finite samples it is biased
    upwards, the more the smaller N is, so compare only numbers made with the same counts.
    """
    return moments_distance(
        moments(features.extract("digit-96", images_a)),
        moments(features.extract("digit-96", images_b)),
    )
