"""Precision and recall: blocks against whole matrices, copies, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lit_jax.evaluation import neighbours
from lit_jax.evaluation.neighbours import precision_recall, squared_radii
from support import evaluation_cases


def _sets(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = np.concatenate([rng.normal(size=(60, 6)), 0.3 * rng.normal(size=(43, 6)) + 2])
    return reference.astype(np.float32), (1.2 * rng.normal(size=(77, 6)) + 0.5).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("rows, columns", [(2048, 8192), (16, 20), (7, 3), (100, 1)])
def test_blocks_equal_whole_matrices(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, k: int
) -> None:
    """Also when a block is narrower than k."""
    monkeypatch.setattr(neighbours, "_ROWS", rows)
    monkeypatch.setattr(neighbours, "_COLUMNS", columns)
    reference, samples = _sets()
    whole = np.sort(evaluation_cases.distances(reference, reference), axis=1)[:, k]
    np.testing.assert_allclose(squared_radii(reference, k), whole, rtol=1e-10)
    found = precision_recall(reference, samples, k)
    assert found == evaluation_cases.precision_recall(reference, samples, k)
    assert 0 < found.precision < 1 and 0 < found.recall < 1
    assert found.precision != found.recall


def test_a_set_covers_itself_and_nothing_far_away() -> None:
    reference, samples = _sets()
    assert precision_recall(reference, reference) == (1.0, 1.0)
    assert precision_recall(reference, samples + 1e3) == (0.0, 0.0)


def test_copies_have_distance_zero_even_far_from_the_origin() -> None:
    """Five copies of one example: its third neighbour is a copy, its ball a point."""
    rng = np.random.default_rng(1)
    point = 1e3 * rng.normal(size=(1, 512))
    reference = np.concatenate(
        [np.repeat(point, 5, axis=0), point + 50 * rng.normal(size=(6, 512))]
    )
    assert list(squared_radii(reference)[:5]) == [0.0] * 5
    samples = np.concatenate([point, point + 1e-3, point + 1e6 * rng.normal(size=(6, 512))])
    inside = precision_recall(np.repeat(point, 5, axis=0), samples)
    assert inside.precision == 1 / 8


def test_the_border_of_a_ball_belongs_to_it() -> None:
    reference = np.array([[0.0], [1.0], [2.0], [3.0]])  # the ball of 0 reaches to 3, of 3 to 0
    samples = np.array([[-3.0], [-3.5], [6.0], [6.25], [100.0]])
    assert precision_recall(reference, samples).precision == 2 / 5


def test_ties_of_whole_numbers_are_exact() -> None:
    """Means that are no sums of few powers of two must not break ties between distances."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        dimensions, top = rng.integers(1, 4), rng.integers(2, 21)
        reference, samples = (
            rng.integers(0, top, (rng.integers(4, 40), dimensions)) for _ in range(2)
        )
        expected = evaluation_cases.precision_recall(reference, samples)
        assert precision_recall(reference, samples) == expected
    reference = [[5], [8], [4], [2], [0], [1]]
    found = precision_recall(reference, [[16], [14], [10], [5], [0], [3]])
    assert found.precision == 5 / 6


def test_tight_clusters_far_apart() -> None:
    """Inside a cluster, distances are a rounding error of the lengths."""
    rng = np.random.default_rng(0)
    reference, samples = (
        np.concatenate([side + 1e-5 * rng.normal(size=(20, 16)) for side in (-100, 100)])
        for _ in range(2)
    )
    expected = evaluation_cases.precision_recall(reference, samples)
    assert precision_recall(reference, samples) == expected
    assert max(expected) < 1
    whole = np.sort(evaluation_cases.distances(reference, reference), axis=1)[:, 3]
    np.testing.assert_allclose(squared_radii(reference), whole, rtol=1e-6)


def test_refusals() -> None:
    reference, samples = _sets()
    with pytest.raises(ValueError, match=r"samples \(3, 6\) with k=3: more than k examples"):
        precision_recall(reference, samples[:3])
    with pytest.raises(ValueError, match=r"reference \(2, 6\)"):
        precision_recall(reference[:2], samples, k=2)
    with pytest.raises(ValueError, match="with one D"):
        precision_recall(reference, samples[:, :5])
    with pytest.raises(ValueError, match="NaN or infinite"):
        precision_recall(np.full_like(reference, np.nan), samples)
