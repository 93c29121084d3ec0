"""Feature space and Fréchet distance against closed forms and the golden values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from lit_jax.evaluation import neighbours, scores
from support import evaluation_cases
from support.golden_cases import golden_sources, load_arrays


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
    assert checked >= 3


@pytest.mark.parametrize("folder", golden_sources("metrics.npz"))
def test_golden_pairwise_scores(folder):
    stored = load_arrays(folder, "metrics")
    cases = [case for case in ("gauss", "mixture", "nonneg") if f"{case}/ref" in stored]
    for case in cases:
        ref, gen = stored[f"{case}/ref"], stored[f"{case}/gen"]
        found = scores.precision_recall(ref, gen)
        expected = (stored[f"{case}/precision_f64"], stored[f"{case}/recall_f64"])
        assert found == tuple(map(float, expected)), case
        radii = neighbours.squared_radii(ref)
        np.testing.assert_allclose(radii, stored[f"{case}/radii_sq_ref"], rtol=1e-6)
        distance = scores.kernel_distance(gen, ref)
        np.testing.assert_allclose(distance, stored[f"{case}/kid_full_f64"], rtol=1e-9)
    assert cases


@pytest.mark.parametrize("folder", golden_sources("metrics.npz"))
def test_golden_inception_scores(folder):
    stored = load_arrays(folder, "metrics")
    logits = stored["is/logits"]
    ten = scores.inception_score(logits)
    np.testing.assert_allclose(ten.scores, stored["is/split10_scores_f64"], rtol=1e-10)
    np.testing.assert_allclose(ten.mean, stored["is/split10_mean_f64"], rtol=1e-10)
    np.testing.assert_allclose(ten.std, stored["is/split10_std_f64"], rtol=1e-9)
    # Chunks as the ADM suite cuts them, the last one shorter.
    adm = scores.inception_score(logits, split_size=300)
    np.testing.assert_allclose(adm.scores, stored["is/adm_scores_f64"], rtol=1e-10)
    np.testing.assert_allclose(
        scores.inception_score(logits, 1).mean, stored["is/single_f64"], rtol=1e-10
    )


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


def test_moments_merge_and_pack():
    values = np.random.default_rng(5).normal(size=(50, 4)) + 1e3
    whole, first, second = (scores.moments(part) for part in (values, values[:13], values[13:]))
    merged = scores.Moments(4)
    for part in (first, second, scores.Moments(4)):
        merged.merge(scores.Moments.unpacked(**part.packed()))
    assert merged.count == 50
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-9)
    np.testing.assert_array_equal(merged.covariance, merged.covariance.T)
    with pytest.raises(ValueError, match="moments of 3 features, not 4"):
        merged.merge(scores.Moments(3))


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


def test_numbers_and_lists_are_taken():
    assert scores.frechet_distance(1.0, 4.0, 3.0, 1.0) == pytest.approx(4 + 1)
    assert scores.frechet_distance([1.0], [[4.0]], [3.0], 1.0) == pytest.approx(4 + 1)
    rows = np.random.default_rng(0).normal(size=(9, 2))
    found = scores.kernel_distance_of_subsets(rows.tolist(), rows.tolist(), 2, 5)
    assert found == scores.kernel_distance_of_subsets(rows, rows, 2, 5)
    assert scores.moments(rows.tolist()).count == 9


def test_frechet_distance_refuses_what_it_is_not_defined_for():
    mean, covariance = np.zeros(3), np.eye(3)
    for bad in (np.zeros(2), np.zeros((3, 1))):
        with pytest.raises(ValueError, match=r"\[D\] and \[D, D\] with one D are needed"):
            scores.frechet_distance(mean, covariance, bad, covariance)
    with pytest.raises(ValueError, match=r"covariances \(3, 3\) and \(1, 3\)"):
        scores.frechet_distance(mean, covariance, mean, np.ones(3))
    with pytest.raises(ValueError, match="contains NaN"):
        scores.frechet_distance(mean, covariance, mean, covariance * np.nan)


def test_equal_examples_have_no_spread():
    same, spread = np.ones((5, 3)), np.random.default_rng(0).normal(size=(50, 3))
    expected = ((spread.mean(0) - 1) ** 2).sum() + np.trace(np.cov(spread.T))
    np.testing.assert_allclose(_distance(same, spread), expected, rtol=1e-12)
    assert _distance(same, same) == 0.0


@pytest.mark.parametrize("counts", [(300, 280), (20, 30), (15, 200)])
def test_covariances_of_any_rank_and_very_unequal_features(counts):
    """Standard deviations from 1 down to 1e-6, as features of real images have."""
    rng = np.random.default_rng(7)
    turn, _ = np.linalg.qr(rng.normal(size=(48, 48)))
    a, b = (rng.normal(size=(count, 48)) * np.logspace(0, -6, 48) @ turn for count in counts)
    np.testing.assert_allclose(_distance(a, b), _distance_from_rows(a, b), rtol=1e-9)


def test_distance_of_a_set_to_itself_is_zero_even_when_rank_deficient():
    few = np.random.default_rng(3).normal(size=(7, 40))
    assert 0.0 <= _distance(few, few) < 1e-10


# --- Inception Score and KID ---


def test_inception_score_equals_a_second_implementation():
    logits = np.random.default_rng(0).normal(size=(37, 9)).astype(np.float32) * 3
    found = scores.inception_score(logits, splits=4)
    mean, std = evaluation_cases.inception_score(logits, [0, 9, 18, 27, 37])
    np.testing.assert_allclose((found.mean, found.std), (mean, std), rtol=1e-12)
    assert len(found.scores) == 4


def test_inception_score_of_known_cases():
    sure = 200.0 * np.eye(8)[np.arange(160) % 8]  # exp(-200) is nearly nothing in float64
    np.testing.assert_allclose(scores.inception_score(sure).mean, 8, rtol=1e-9)
    np.testing.assert_allclose(scores.inception_score(np.zeros((20, 5))).mean, 1, rtol=1e-15)
    # A class whose probability underflows everywhere must not become NaN.
    far = np.zeros((20, 3))
    far[:, 0] = -1e4
    np.testing.assert_allclose(scores.inception_score(far).mean, 1, rtol=1e-15)
    # A constant added to all logits of an example changes nothing, however large.
    logits = np.random.default_rng(1).normal(size=(40, 6))
    np.testing.assert_allclose(
        scores.inception_score(logits + 1e5).mean, scores.inception_score(logits).mean, rtol=1e-9
    )


def test_inception_score_refuses_empty_splits_and_bad_numbers():
    with pytest.raises(ValueError, match="9 examples leave some of 10 splits.*at most 9 splits"):
        scores.inception_score(np.zeros((9, 4)))
    with pytest.raises(ValueError, match="0 examples in splits of 5"):
        scores.inception_score(np.zeros((0, 4)), split_size=5)
    with pytest.raises(ValueError, match="finite numbers"):
        scores.inception_score(np.full((20, 4), np.nan))


@pytest.mark.parametrize("block", [4096, 7])
def test_kernel_distance_equals_a_second_implementation(monkeypatch, block):
    monkeypatch.setattr(scores, "_BLOCK", block)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(31, 5)).astype(np.float32), rng.normal(size=(22, 5)) + 0.4
    expected = evaluation_cases.kid(a, b)
    np.testing.assert_allclose(scores.kernel_distance(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(scores.kernel_distance(b, a), expected, rtol=1e-12)


def test_kernel_distance_of_subsets_is_deterministic_and_unbiased():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 4)), rng.normal(size=(150, 4)) + 0.5
    mean, std = scores.kernel_distance_of_subsets(a, b, 60, 40)
    assert (mean, std) == scores.kernel_distance_of_subsets(a, b, 60, 40)
    assert (mean, std) != scores.kernel_distance_of_subsets(a, b, 60, 40, seed=1)
    assert abs(mean - scores.kernel_distance(a, b)) < 4 * std / np.sqrt(60) and std > 0
    whole = scores.kernel_distance_of_subsets(a[:40], b[:40], 3, 40)
    np.testing.assert_allclose(whole, (scores.kernel_distance(a[:40], b[:40]), 0), atol=1e-12)
    with pytest.raises(ValueError, match="sets of 200 and 150 examples have no subsets of 151"):
        scores.kernel_distance_of_subsets(a, b, 3, 151)


def test_kernel_distance_refuses_what_it_is_not_defined_for():
    for a, b in (((1, 3), (5, 3)), ((5, 3), (5, 4))):
        with pytest.raises(ValueError, match=r"\[N, D\] with N of at least 2"):
            scores.kernel_distance(np.zeros(a), np.zeros(b))
    with pytest.raises(ValueError, match="NaN or infinite"):
        scores.kernel_distance(np.zeros((4, 3)), np.full((4, 3), np.inf))
