"""Improved precision and recall (Kynkäänniemi et al., 2019), exact and in little memory.

Every set spans a manifold: the union of the balls around its examples that reach to their k-th
nearest other example. Distances are float64 and live one block at a time, so that two sets of
50,000 examples with 2048 features need little more than the features themselves.

Letters: N examples, D features, R rows and C columns of a block of distances, P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Distances of a block: 2048 x 8192 float64 are 134 MB, and a few such arrays live at a time.
_ROWS, _COLUMNS = 2048, 8192

# A squared distance below this part of the squared lengths has lost its digits to rounding, as that
# of an example to a copy of itself; it is computed again, from the differences.
_ROUNDING = 1e-10
_PAIRS = 4096  # of these at a time


class PrecisionRecall(NamedTuple):
    """`precision`: the part of the samples that lies on the manifold of the reference; `recall`:
    the part of the reference on the manifold of the samples."""

    precision: float
    recall: float


def precision_recall(
    reference_NxD: ArrayLike, samples_NxD: ArrayLike, k: int = 3
) -> PrecisionRecall:
    """Return precision and recall in [0, 1] of samples against a reference, as in the ADM suite.

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
    centre = _centre(reference_NxD, samples_NxD)
    reference_radii = squared_radii(reference_NxD, k, centre)
    sample_radii = squared_radii(samples_NxD, k, centre)
    found = np.zeros(len(samples_NxD), bool)
    covered = np.zeros(len(reference_NxD), bool)
    for rows, columns, distances_RxC in _blocks(samples_NxD, reference_NxD, centre):
        found[rows] |= (distances_RxC <= reference_radii[columns]).any(axis=1)
        covered[columns] |= (distances_RxC <= sample_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(found.mean()), float(covered.mean()))


def squared_radii(
    features_NxD: np.ndarray, k: int = 3, centre: np.ndarray | None = None
) -> np.ndarray:
    """Return squared distance [N] from every example to its k-th nearest other example.

    `centre` [D], near the examples, is what distances are computed around; by default their mean.
    """
    if centre is None:
        centre = _centre(features_NxD, features_NxD)
    nearest_Nxk = np.full((len(features_NxD), k), np.inf)
    for rows, columns, distances_RxC in _blocks(features_NxD, features_NxD, centre):
        # An example is not its own neighbour; a copy of it is.
        inside = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        distances_RxC[inside - rows.start, inside - columns.start] = np.inf
        if distances_RxC.shape[1] > k:
            distances_RxC.partition(k - 1, axis=1)
        candidates = np.concatenate([nearest_Nxk[rows], distances_RxC[:, :k]], axis=1)
        nearest_Nxk[rows] = np.partition(candidates, k - 1, axis=1)[:, :k]
    return nearest_Nxk[:, k - 1]


def _centre(a_NxD: np.ndarray, b_NxD: np.ndarray) -> np.ndarray:
    """Return about the mean [D] of `a`. Its numbers have few binary digits: subtracting it from
    whole numbers leaves them exact, and so the equality of two of their distances."""
    largest = max(max(float(x.max()), -float(x.min())) for x in (a_NxD, b_NxD))
    step = 2.0 ** (np.floor(np.log2(largest)) - 10) if largest > 1e-300 else 1.0
    return np.rint(a_NxD.mean(axis=0, dtype=np.float64) / step) * step


def _blocks(
    a_NxD: np.ndarray, b_NxD: np.ndarray, centre: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield rows, columns and squared distances [R, C] between them, over all pairs of examples."""
    a_names = _names(a_NxD)
    b_names = a_names if b_NxD is a_NxD else _names(b_NxD)
    # Distances do not change when both sets move; small numbers keep more digits of them.
    for first in range(0, len(b_NxD), _COLUMNS):
        columns = slice(first, min(first + _COLUMNS, len(b_NxD)))
        b_CxD = b_NxD[columns] - centre
        b_norm = np.einsum("cd,cd->c", b_CxD, b_CxD)
        for start in range(0, len(a_NxD), _ROWS):
            rows = slice(start, min(start + _ROWS, len(a_NxD)))
            a_RxD = a_NxD[rows] - centre
            a_norm = np.einsum("rd,rd->r", a_RxD, a_RxD)
            distances_RxC = (-2.0 * a_RxD) @ b_CxD.T
            distances_RxC += a_norm[:, None]
            distances_RxC += b_norm
            # Few come near zero; only those are compared with their own lengths.
            near = np.nonzero(distances_RxC <= _ROUNDING * (a_norm.max() + b_norm.max()))
            lost = distances_RxC[near] <= _ROUNDING * (a_norm[near[0]] + b_norm[near[1]])
            row, column = near[0][lost], near[1][lost]
            distances_RxC[row, column] = 0.0
            other = a_names[rows][row] != b_names[columns][column]
            row, column = row[other], column[other]
            for i in range(0, len(row), _PAIRS):
                pairs = row[i : i + _PAIRS], column[i : i + _PAIRS]
                gap_PxD = a_NxD[start + pairs[0]].astype(np.float64) - b_NxD[first + pairs[1]]
                distances_RxC[pairs] = np.einsum("pd,pd->p", gap_PxD, gap_PxD)
            yield rows, columns, distances_RxC


def _names(features_NxD: np.ndarray) -> np.ndarray:
    """Return a hash [N] of each example, by which copies are known: many copies are quickly
    done."""
    rows = (row.astype(np.float64).tobytes() for row in features_NxD)
    hashes = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(hashes, np.uint64)
