"""The feature space of the digits and the distance in it."""

from __future__ import annotations

import numpy as np
import pytest

from demo.digits import features


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
    assert features.digit_frechet_distance(images, images) < 1e-10
    distances = [features.digit_frechet_distance(images, d) for d in damaged]
    assert 0 < distances[0] < distances[1]


def test_features_refuse_what_they_are_not_defined_for():
    with pytest.raises(ValueError, match="unknown feature space 'digit96'; did you mean"):
        features.extract("digit96", _digits(2))
    with pytest.raises(ValueError, match="float64, not uint8"):
        features.extract("digit-96", _digits(2) / 255.0)
    with pytest.raises(ValueError, match=r"shape \(2, 8, 8, 3\)"):
        features.extract("digit-96", np.zeros((2, 8, 8, 3), np.uint8))
