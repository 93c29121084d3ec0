"""Feature space and Fréchet distance against closed forms and the golden values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from golden_cases import golden_sources, load_arrays
from lit_jax.evaluation import features, scores


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return scores.moments_distance(scores.moments(a), scores.moments(b))


def _distance_from_rows(a: np.ndarray, b: np.ndarray) -> float:
    """The same distance without covariances or square roots: with centred rows A and B, scaled so
    that A^T A and B^T B are the covariances, the cross term is the nuclear norm of A B^T."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    gap = a.mean(axis=0) - b.mean(axis=0)
    rows_a, rows_b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b))
    cross = np.linalg.svd(rows_a @ rows_b.T, compute_uv=False).sum()
    return float(gap @ gap + (rows_a**2).sum() + (rows_b**2).sum() - 2 * cross)


@pytest.mark.parametrize("folder", golden_sources("metrics.npz"))
def test_golden_distances(folder):
    stored = load_arrays(folder, "metrics")
    cases = {"few": "fid", "gauss": "fid", "mixture": "fid", "nonneg": "fid", "spatial": "sfid"}
    checked = 0
    for case, score in cases.items():
        suffix = "_nhwc" if case == "spatial" else ""
        if f"{case}/ref{suffix}" in stored:
            ref, gen = stored[f"{case}/ref{suffix}"], stored[f"{case}/gen{suffix}"]
            value = _distance(ref, gen)
            np.testing.assert_allclose(value, stored[f"{case}/{score}_f64"], rtol=1e-6)
            np.testing.assert_allclose(value, _distance_from_rows(ref, gen), rtol=1e-11)
            checked += 1
    assert checked >= 2


def test_moments_equal_numpy_however_the_rows_are_divided():
    rng = np.random.default_rng(0)
    # A large offset makes sum-of-squares accumulation lose digits that this one keeps.
    values = rng.normal(size=(101, 5)) * [1, 2, 3, 4, 5] + 1e6
    pieces = scores.Moments(5)
    for part in np.split(values, [1, 2, 40, 40, 97]):
        pieces.update(part)
    assert pieces.count == 101
    np.testing.assert_allclose(pieces.mean, values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(pieces.covariance, np.cov(values.T, ddof=1), rtol=1e-8, atol=1e-8)


def test_moments_refuse_bad_input():
    with pytest.raises(ValueError, match=r"\(3, 4\), not \[N, 5\]"):
        scores.Moments(5).update(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        scores.Moments(2).update(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="at least 2 examples; there are 1"):
        _ = scores.moments(np.zeros((1, 2))).covariance


def test_closed_form_of_commuting_gaussians():
    # Diagonal covariances: |dm|^2 + sum (s_a - s_b)^2.
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([3.0, 1.0, 0.0])
    std_a, std_b = np.array([1.0, 2.0, 0.0]), np.array([4.0, 2.0, 5.0])
    expected = 9 + 4 + 9 + 25
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    value = scores.frechet_distance(
        turn @ mean_a,
        turn @ np.diag(std_a**2) @ turn.T,
        turn @ mean_b,
        turn @ np.diag(std_b**2) @ turn.T,
    )
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_agrees_with_the_matrix_square_root_and_is_symmetric():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(50, 6)), rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    gap = a.mean(0) - b.mean(0)
    expected = gap @ gap + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    np.testing.assert_allclose(_distance(a, b), expected, rtol=1e-8)
    np.testing.assert_allclose(_distance(b, a), _distance(a, b), rtol=1e-12)


def test_distance_of_a_set_to_itself_is_zero_even_when_rank_deficient():
    few = np.random.default_rng(3).normal(size=(7, 40))
    assert 0.0 <= _distance(few, few) < 1e-10


def _digits(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_digit_features_of_one_lit_pixel():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    image[0, 2, 5] = 255
    vector = features.extract("digit-96", image)[0]
    assert vector.shape == (96,) and vector.dtype == np.float64
    pixels, right, down = vector[:64].reshape(8, 8), vector[64:80].reshape(4, 4), vector[80:]
    assert pixels[2, 5] == 1.0 and pixels.sum() == 1.0
    # |differences| at (2, 4) and (2, 5) fall into one horizontal cell: 2 of 4 entries are 1.
    assert right[1, 2] == 0.5 and right.sum() == 0.5
    # Downwards they are at (1, 5) and (2, 5), in two cells.
    assert down.reshape(4, 4)[0, 2] == down.reshape(4, 4)[1, 2] == 0.25 and down.sum() == 0.5


def test_digit_distance_grows_with_the_damage():
    images = _digits(300) // 4
    rng = np.random.default_rng(1)
    damaged = [
        np.clip(images + rng.normal(0, s, images.shape), 0, 255).astype(np.uint8) for s in (8, 40)
    ]
    assert scores.digit_frechet_distance(images, images) < 1e-10
    distances = [scores.digit_frechet_distance(images, d) for d in damaged]
    assert 0 < distances[0] < distances[1]


def test_features_refuse_what_they_are_not_defined_for():
    with pytest.raises(ValueError, match="unknown feature space 'digit96'; did you mean"):
        features.extract("digit96", _digits(2))
    with pytest.raises(ValueError, match="float64, not uint8"):
        features.extract("digit-96", _digits(2) / 255.0)
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8, 3\)"):
        features.extract("digit-96", np.zeros((2, 8, 8, 3), np.uint8))
