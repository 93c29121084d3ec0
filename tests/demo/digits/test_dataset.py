"""The digits builder: invertible grey levels, stratified splits, no TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from demo.digits import dataset as digits

ROOT = Path(__file__).parents[3]


def _sorted_rows(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rows = np.concatenate([images.reshape(len(images), -1).astype(int), labels[:, None]], axis=1)
    return rows[np.lexsort(rows.T)]


def test_grey_levels_are_invertible_and_span_the_range():
    levels = np.arange(17)
    greys = digits.level_to_grey(levels)
    assert greys.dtype == np.uint8 and greys[0] == 0 and greys[-1] == 255
    np.testing.assert_array_equal(digits.grey_to_level(greys), levels)
    assert np.all(np.diff(greys.astype(int)) >= 15)


def test_heldout_mask_is_stratified_and_evenly_spread():
    labels = np.array([0] * 10 + [1] * 7)
    held = digits.heldout_mask(labels, per_class=2)
    assert held[:10].sum() == held[10:].sum() == 2
    assert held[:5].sum() == held[5:10].sum() == 1
    with pytest.raises(ValueError, match="class 1 has 7 examples; 8"):
        digits.heldout_mask(labels, per_class=8)


def test_splits_partition_the_source_exactly(data_dir):
    parts = {split: digits.load_split(data_dir, split) for split in digits.SPLIT_SIZES}
    assert {split: len(images) for split, (images, _) in parts.items()} == digits.SPLIT_SIZES
    assert np.all(np.bincount(parts["heldout"][1]) == 50)
    images = np.concatenate([parts[s][0] for s in parts])
    labels = np.concatenate([parts[s][1] for s in parts])
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    bunch = load_digits()
    np.testing.assert_array_equal(
        _sorted_rows(digits.grey_to_level(images), labels),
        _sorted_rows(bunch.images.astype(int), bunch.target),
    )


def test_prepare_is_idempotent_and_info_matches_the_constants(data_dir):
    folder = Path(data_dir, "digits", "1.0.0")
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    info = digits.prepare(data_dir)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert any("array_record" in name for name in before)
    assert {s: i.num_examples for s, i in info.splits.items()} == digits.SPLIT_SIZES
    assert info.features["image"].shape == digits.IMAGE_SHAPE
    assert info.features["label"].num_classes == digits.NUM_CLASSES


def test_the_data_path_never_imports_tensorflow(tmp_path):
    script = (
        "import sys\n"
        "from demo.digits import dataset\n"
        "from lit_jax.data import __main__, pipeline\n"
        "__main__.main(['digits', sys.argv[1]])\n"
        "next(pipeline.make_train_iterator('digits', sys.argv[1], 'train', 8, 0))\n"
        "dataset.load_split(sys.argv[1], 'heldout')\n"
        "loaded = sorted(m for m in sys.modules if m == 'tensorflow' or m == 'torch')\n"
        "print('loaded:', loaded)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "d")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "digits/1.0.0 heldout: 500 images" in done.stdout
