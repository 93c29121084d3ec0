"""Bilinear resizing against torch, and against the rule of TensorFlow 1 written out."""

from __future__ import annotations

import numpy as np
import pytest

from lit_jax.models.inception.resize import bilinear_weights, resize_bilinear
from support.live_parity import live_seed


def test_half_pixel_centres_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(live_seed())
    for _ in range(6):
        sizes = random.integers(1, 400, 4)  # up and down, not square
        images = random.uniform(0, 255, (2, sizes[0], sizes[1], 3)).astype(np.float32)
        size = (int(sizes[2]), int(sizes[3]))
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(images).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
        )
        ours = resize_bilinear(images, size, half_pixel=True)
        np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=2e-4)


def test_corner_rule_of_tensorflow_1() -> None:
    random = np.random.default_rng(live_seed())
    for _ in range(6):
        inputs, outputs = (int(n) for n in random.integers(1, 60, 2))
        line = random.uniform(0, 255, inputs)
        expected = []
        for index in range(outputs):
            # TensorFlow 1 keeps ratio and position in float32.
            position = np.float32(index) * (np.float32(inputs) / np.float32(outputs))
            lower = min(int(position), inputs - 1)
            upper = min(lower + 1, inputs - 1)
            expected.append(line[lower] + (line[upper] - line[lower]) * (position - lower))
        weights = bilinear_weights(outputs, inputs, half_pixel=False)
        np.testing.assert_allclose(weights @ line, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("half_pixel", [False, True])
def test_rows_are_weights(half_pixel: bool) -> None:
    for outputs, inputs in ((299, 256), (299, 32), (299, 512), (299, 1), (1, 5)):
        weights = bilinear_weights(outputs, inputs, half_pixel)
        assert weights.shape == (outputs, inputs) and weights.dtype == np.float32
        assert weights.min() >= 0 and np.count_nonzero(weights, axis=1).max() <= 2
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(bilinear_weights(299, 299, half_pixel), np.eye(299))
