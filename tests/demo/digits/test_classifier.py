"""The judge on the real digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from demo.digits import classifier, features
from demo.digits import dataset as digits


@pytest.fixture(scope="module")
def real():
    """The two splits, made by the builder's rule without writing files."""
    bunch = load_digits()
    images, labels = digits.level_to_grey(bunch.images)[..., None], bunch.target
    held = digits.heldout_mask(labels)
    return {"train": (images[~held], labels[~held]), "heldout": (images[held], labels[held])}


@pytest.fixture(scope="module")
def judge(real):
    return classifier.train_judge(*real["heldout"])


def test_judge_knows_real_digits_it_has_not_seen(judge, real):
    accuracy = classifier.conditional_accuracy(judge, *real["train"])
    assert 0.98 < accuracy < 1.0
    again = classifier.train_judge(*real["heldout"])
    np.testing.assert_array_equal(judge.predict(real["train"][0]), again.predict(real["train"][0]))


def test_wrong_labels_and_noise_score_like_chance(judge, real):
    images, labels = real["train"]
    assert classifier.conditional_accuracy(judge, images, (labels + 1) % 10) < 0.02
    noise = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 1), dtype=np.uint8)
    assert classifier.conditional_accuracy(judge, noise, np.arange(500) % 10) < 0.2


def test_real_splits_are_close_and_shifted_digits_are_not(real):
    train, heldout = real["train"][0], real["heldout"][0]
    baseline = features.digit_frechet_distance(train, heldout)
    assert 0.05 < baseline < 0.12
    assert features.digit_frechet_distance(train, np.roll(heldout, 1, axis=2)) > 20 * baseline


def test_judge_refuses_bad_input(judge, real):
    images, labels = real["heldout"]
    with pytest.raises(ValueError, match="not uint8"):
        judge.predict(images / 255.0)
    with pytest.raises(ValueError, match=r"trained on \[8, 8, 1\]"):
        judge.predict(images[:, :4])
    with pytest.raises(ValueError, match="500 images with labels of shape"):
        classifier.conditional_accuracy(judge, images, labels[:-1])
    with pytest.raises(ValueError, match="0 images"):
        classifier.conditional_accuracy(judge, images[:0], labels[:0])
