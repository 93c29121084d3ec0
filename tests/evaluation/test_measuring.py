"""Features of sets of images, in parts: independent of batches, hosts and interruptions."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.identity import params_sha256
from lit_jax.evaluation.image_sets import ArrayImages
from lit_jax.evaluation.measuring import (
    Measured,
    choose,
    merge_parts,
    missing_parts,
    part_spans,
    write_parts,
)
from lit_jax.evaluation.network import SPATIAL_FEATURES, FeatureExtractor, Network
from lit_jax.models.functional import Params, with_params
from lit_jax.runs.progress import Progress
from support.evaluation_cases import pictures
from support.inception_cases import TINY, tiny_weights


class Counted(Progress):
    """Progress that counts images measured now, and those of an earlier run."""

    def __init__(self) -> None:
        super().__init__("features", 37, "image", lambda text: None)
        self.measured = self.kept = 0

    def advance(self, units: float = 1, note: str = "") -> None:
        self.measured += int(units)

    def found(self, units: float) -> None:
        self.kept += int(units)


COUNT = 37  # parts of 16, 16 and 5
IMAGES = ArrayImages("made up", pictures(COUNT))


@functools.cache
def tiny_params() -> Params:
    return import_params(tiny_weights(), TINY)[0]


def network(params: Params | None = None) -> Network:
    params = tiny_params() if params is None else params
    return Network("tiny", TINY, params, params_sha256(params))


@functools.cache
def extractor() -> FeatureExtractor:
    """Eight virtual devices: a batch of 8."""
    return FeatureExtractor(network(), 5)


def _write(
    folder: Path, share: tuple[int, int] = (0, 1), kept: np.ndarray | None = None
) -> tuple[int, int]:
    kept = np.arange(COUNT) if kept is None else kept
    counted = Counted()
    write_parts(IMAGES, extractor(), folder, kept, True, share, counted)
    return counted.measured, counted.kept


@functools.cache
def _expected() -> dict[str, np.ndarray]:
    """The features straight from the model."""
    model = with_params(TINY, tiny_params())
    found = jax.jit(lambda images: model(images))(IMAGES.read(0, COUNT))
    return {
        "pool": np.asarray(found.pool3),
        "logits": np.asarray(found.logits_unbiased),
        "spatial": np.asarray(found.spatial).reshape(COUNT, -1),
    }


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("parts")
    assert _write(folder) == (COUNT, 0)
    return merge_parts(folder, COUNT)


def test_batches_are_a_multiple_of_the_devices() -> None:
    assert jax.local_device_count() == 8 and extractor().batch_size == 8


def test_features_and_moments_are_those_of_the_model(measured: Measured) -> None:
    expected = _expected()
    for name, found in (("pool", measured.kept_KxD), ("logits", measured.logits_NxL)):
        assert found.dtype == np.float32
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5 * scale)
    for name, moments in (("pool", measured.pool), ("spatial", measured.spatial)):
        values = expected[name].astype(np.float64)
        scale = np.abs(values).max()
        assert moments.count == COUNT
        np.testing.assert_allclose(moments.mean, values.mean(0), rtol=0, atol=1e-5 * scale)
        covariance = np.cov(values, rowvar=False)
        np.testing.assert_allclose(moments.covariance, covariance, rtol=0, atol=1e-5 * scale**2)
    assert len(measured.spatial.mean) == SPATIAL_FEATURES
    assert measured.count == COUNT


def test_moments_are_float64_sums_of_the_features(measured: Measured) -> None:
    values = measured.kept_KxD.astype(np.float64)
    np.testing.assert_allclose(measured.pool.mean, values.mean(0), rtol=1e-13)
    covariance = np.cov(values, rowvar=False)
    np.testing.assert_allclose(measured.pool.covariance, covariance, rtol=1e-9, atol=1e-16)


def test_a_resumed_run_and_several_hosts_give_the_same_bytes(
    tmp_path: Path, measured: Measured
) -> None:
    folder = tmp_path / "parts"
    assert missing_parts(folder, COUNT) == 3
    _write(folder, (1, 2))
    assert missing_parts(folder, COUNT) == 2 and len(list(folder.iterdir())) == 1
    before = next(folder.iterdir()).stat().st_mtime_ns
    _write(folder, (0, 2))
    assert missing_parts(folder, COUNT) == 0
    assert (folder / "part-01.npz").stat().st_mtime_ns == before
    again = merge_parts(folder, COUNT)
    np.testing.assert_array_equal(again.pool.covariance, measured.pool.covariance)
    np.testing.assert_array_equal(again.spatial.mean, measured.spatial.mean)
    np.testing.assert_array_equal(again.kept_KxD, measured.kept_KxD)
    assert again.images_sha256 == measured.images_sha256
    assert _write(folder) == (0, COUNT)  # told of, though nothing was left to do


def test_chosen_features_and_logits(tmp_path: Path, measured: Measured) -> None:
    kept = np.array([0, 7, 8, 15, 16, 31, 36])
    write_parts(IMAGES, extractor(), tmp_path, kept, False, (0, 1), Counted())
    found = merge_parts(tmp_path, COUNT)
    np.testing.assert_array_equal(found.kept_KxD, measured.kept_KxD[kept])
    assert found.logits_NxL.shape == (0, 10) and found.pool.count == COUNT


def test_hash_of_the_pixels(tmp_path: Path, measured: Measured) -> None:
    changed = IMAGES.read(0, COUNT).copy()
    changed[20, 0, 0, 0] ^= 1
    images = ArrayImages("changed", changed)
    write_parts(images, extractor(), tmp_path, np.arange(0), False, (0, 1), Counted())
    assert merge_parts(tmp_path, COUNT).images_sha256 != measured.images_sha256


def test_spans_cover_all_images_once() -> None:
    for count in (1, 15, 16, 17, 512, 1000, 50_000, 1_281_167):
        spans = part_spans(count)
        assert spans[0][0] == 0 and spans[-1][1] == count and len(spans) <= 32
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert all(last > first for first, last in spans)
    assert {last - first for first, last in part_spans(50_000)[:-1]} == {2048}


def test_choice_is_spread_and_repeatable() -> None:
    chosen = choose(1_281_167, 10_000)
    assert len(set(chosen)) == 10_000 and (np.diff(chosen) > 0).all()
    assert abs(chosen.mean() / 1_281_167 - 0.5) < 0.02
    np.testing.assert_array_equal(chosen, choose(1_281_167, 10_000))
    np.testing.assert_array_equal(choose(7, 10), np.arange(7))


def test_damaged_part_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "part-01.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="part-01.npz is damaged.*run the same command again"):
        merge_parts(tmp_path, COUNT)


def test_features_that_are_not_finite_name_the_image() -> None:
    params = jax.tree.map(np.copy, tiny_params())
    params["fc"]["kernel"][3, 2] = np.nan
    broken = FeatureExtractor(network(params), 8)
    with pytest.raises(ValueError, match="image 16 of made up has NaN.*--inception is damaged"):
        list(broken.features(IMAGES, 16, 20))
