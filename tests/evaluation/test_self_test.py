"""The self test passes, and notices what is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_jax.commands.evaluate import self_test as evaluate_self_test
from lit_jax.config.evaluate import ReferenceConfig
from lit_jax.evaluation import scores, self_test
from lit_jax.evaluation.self_test import Check, gaussian_checks, score_checks
from lit_jax.evaluation.statistics import Gaussian
from support.evaluation_cases import pictures, save_inception


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_self_test, "IMAGES", 24)
    real = self_test.synthetic_images
    monkeypatch.setattr(evaluate_self_test, "synthetic_images", lambda: real(24))


def _run(*arguments: object) -> tuple[int, list[str]]:
    said: list[str] = []
    return evaluate_self_test.self_test(*arguments, log=said.append), said  # type: ignore[arg-type]


def test_without_any_file() -> None:
    done, said = _run("", None)
    assert said[0] == "self test of made-up images with a small random Inception"
    assert "expected" in said[1] and "found" in said[1]
    assert said[-1] == f"all {done} checks passed" and len(said) == done + 3
    assert all(line.endswith("  ok") for line in said[2:-1])
    assert sum("noise" in line or "blur" in line for line in said) == 6


def test_of_a_reference(tmp_path: Path) -> None:
    inception = str(save_inception(tmp_path / "inception"))
    rng = np.random.default_rng(0)
    values, spatial = rng.normal(size=(200, 128)), rng.normal(size=(30, 2023))
    arrays = {
        "mu": values.mean(0),
        "sigma": np.cov(values.T),
        "mu_s": spatial.mean(0),
        "sigma_s": np.cov(spatial.T),
    }
    np.savez(tmp_path / "stats.npz", **arrays)
    done, said = _run(inception, ReferenceConfig(source=str(tmp_path / "stats.npz")))
    assert sum("statistics: FID" in line for line in said) == 3
    assert sum("statistics: sFID" in line for line in said) == 3
    assert not any("images: " in line for line in said)
    trace = float(np.trace(arrays["sigma"]))
    assert any("spread doubled" in line and f"{trace:.6g}" in line for line in said)
    np.savez(tmp_path / "images.npz", arr_0=pictures(30))
    done, said = _run(inception, ReferenceConfig(source=str(tmp_path / "images.npz")))
    assert sum("images: " in line for line in said) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"inception", "stats.npz", "images.npz"}


def test_each_broken_score_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {
        "frechet_distance": lambda *a: 1.001 * REAL["frechet_distance"](*a),
        "precision_recall": lambda *a: scores.PrecisionRecall(0.5, 0.5),
        "kernel_distance": lambda *a: 0.0,
        "inception_score": lambda *a: scores.InceptionScore(1.01, 0.0, ()),
    }
    assert all(check.passed for check in score_checks())
    for name, function in broken.items():
        with monkeypatch.context() as patch:
            patch.setattr(scores, name, function)
            assert not all(check.passed for check in score_checks()), name


REAL = {"frechet_distance": scores.frechet_distance}


def test_failed_checks_are_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "kernel_distance", lambda *arguments: float("nan"))
    with pytest.raises(ValueError, match="1 of 20 checks failed: scores: KID of a set against"):
        _run("", None)


def test_statistics_that_are_no_covariance_fail() -> None:
    """As those of a damaged file."""
    mean = np.zeros(3)
    assert all(c.passed for c in gaussian_checks("good", Gaussian(mean, np.diag([1.0, 2, 3]))))
    twisted = np.array([[1.0, 5, 0], [5, 1, 0], [0, 0, 1]])
    assert not all(c.passed for c in gaussian_checks("bad", Gaussian(mean, twisted)))


def test_line_of_a_check() -> None:
    assert Check("a", "1", 1.0, 1.0, 1.0).line().split() == ["a", "1", "1", "ok"]
    assert Check("a", "> 1", 0.5, 1.0, 2.0).line().endswith("0.5  FAILED")
    assert not Check("a", "1", float("nan"), 0.0, 2.0).passed
