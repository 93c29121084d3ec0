"""Improved precision and recall (Kynkäänniemi et al., 2019), exact and in little memory.

Every set spans a manifold: the union of the balls around its examples that reach to their k-th
nearest other example. Distances are float64 and live one block at a time, so that two sets of
50,000 examples with 2048 features need little more than the features themselves.

Letters: N examples, D features, R rows and C columns of a block of distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Distances of a block: 2048 x 8192 float64 are 134 MB, and a few such arrays live at a time.
_ROWS, _COLUMNS = 2048, 8192

# A squared distance below this part of the squared lengths is what rounding leaves of zero: that of
# an example to a copy of itself.
_ROUNDING = 1e-13


class PrecisionRecall(NamedTuple):
    """`precision`: the part of the samples that lies on the manifold of the reference; `recall`:
    the part of the reference on the manifold of the samples."""

    precision: float
    recall: float


def precision_recall(
    reference_NxD: np.ndarray, samples_NxD: np.ndarray, k: int = 3
) -> PrecisionRecall:
    """Precision and recall in [0, 1] of samples against a reference, as in the ADM suite.

    An example is on a manifold when its squared distance to any example of that set is at most the
    squared radius there. Features [N, D] of any float type. Raises ValueError when a set has no
    k-th other example, for unequal D and for values that are not finite.
    """
    reference_NxD, samples_NxD = np.asarray(reference_NxD), np.asarray(samples_NxD)
    shapes = f"a reference {reference_NxD.shape} and samples {samples_NxD.shape}"
    if reference_NxD.ndim != 2 or reference_NxD.shape[1:] != samples_NxD.shape[1:]:
        raise ValueError(f"{shapes}: features [N, D] with one D are needed")
    if k < 1 or min(len(reference_NxD), len(samples_NxD)) <= k:
        raise ValueError(f"{shapes} with k={k}: more than k examples are needed in each, k >= 1")
    if not (np.isfinite(reference_NxD).all() and np.isfinite(samples_NxD).all()):
        raise ValueError(f"{shapes} contain NaN or infinite values")
    reference_radii = squared_radii(reference_NxD, k)
    sample_radii = squared_radii(samples_NxD, k)
    found = np.zeros(len(samples_NxD), bool)
    covered = np.zeros(len(reference_NxD), bool)
    for rows, columns, distances_RxC in _blocks(samples_NxD, reference_NxD):
        found[rows] |= (distances_RxC <= reference_radii[columns]).any(axis=1)
        covered[columns] |= (distances_RxC <= sample_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(found.mean()), float(covered.mean()))


def squared_radii(features_NxD: np.ndarray, k: int = 3) -> np.ndarray:
    """Squared distance [N] from every example to its k-th nearest other example."""
    nearest_Nxk = np.full((len(features_NxD), k), np.inf)
    for rows, columns, distances_RxC in _blocks(features_NxD, features_NxD):
        # An example is not its own neighbour; a copy of it is.
        inside = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        distances_RxC[inside - rows.start, inside - columns.start] = np.inf
        if distances_RxC.shape[1] > k:
            distances_RxC.partition(k - 1, axis=1)
        candidates = np.concatenate([nearest_Nxk[rows], distances_RxC[:, :k]], axis=1)
        nearest_Nxk[rows] = np.partition(candidates, k - 1, axis=1)[:, :k]
    return nearest_Nxk[:, k - 1]


def _blocks(a_NxD: np.ndarray, b_NxD: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows, columns and squared distances [R, C] between them, over all pairs of examples."""
    # Distances do not change when both sets move; small numbers keep more digits of them.
    centre = b_NxD.mean(axis=0, dtype=np.float64)
    for first in range(0, len(b_NxD), _COLUMNS):
        columns = slice(first, min(first + _COLUMNS, len(b_NxD)))
        b_CxD = b_NxD[columns] - centre
        b_norm = np.einsum("cd,cd->c", b_CxD, b_CxD)
        for start in range(0, len(a_NxD), _ROWS):
            rows = slice(start, min(start + _ROWS, len(a_NxD)))
            a_RxD = a_NxD[rows] - centre
            a_norm = np.einsum("rd,rd->r", a_RxD, a_RxD)
            lengths_RxC = a_norm[:, None] + b_norm
            distances_RxC = a_RxD @ b_CxD.T
            distances_RxC *= -2.0
            distances_RxC += lengths_RxC
            distances_RxC[distances_RxC <= _ROUNDING * lengths_RxC] = 0.0
            yield rows, columns, distances_RxC
