"""Loss curves: the right numbers, and the same bytes every time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from demo import curves


def test_smoothing_keeps_lines_and_ends_and_damps_noise():
    line = 3.0 * np.arange(50) + 1
    smoothed = curves.smooth(line, 9)
    np.testing.assert_allclose(smoothed[4:-4], line[4:-4])
    np.testing.assert_allclose(smoothed[[0, -1]], [line[:5].mean(), line[-5:].mean()])
    noise = np.random.default_rng(0).normal(size=2000)
    assert np.abs(curves.smooth(noise, 100)).max() < 0.5
    np.testing.assert_allclose(curves.smooth(noise, 1), noise, atol=1e-12)


def test_curves_are_drawn_the_same_every_time_and_react_to_the_numbers(tmp_path):
    steps = np.arange(1, 201)
    runs = {"a": (steps, 1 / steps), "b": (steps, 2 / steps)}
    path = tmp_path / "loss.png"
    curves.loss_curves(path, runs, title="loss")
    first = path.read_bytes()
    assert Image.open(path).size == (880, 440)
    curves.loss_curves(path, runs, title="loss")
    assert path.read_bytes() == first
    curves.loss_curves(path, {**runs, "b": (steps, 3 / steps)}, title="loss")
    assert path.read_bytes() != first


def test_curves_refuse_empty_unequal_and_non_finite_runs(tmp_path):
    for runs, message in [
        ({}, "at least one run"),
        ({"a": ([1, 2], [1.0])}, r"'a' has \(2,\) steps and \(1,\) values"),
        ({"a": ([], [])}, "must match"),
        ({"a": ([1], [float("nan")])}, "'a' contains NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            curves.loss_curves(tmp_path / "x.png", runs)
    assert list(tmp_path.iterdir()) == []
