"""Batches of pixels from class folders, plain folders and TFDS data sets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.config import DataConfig
from lit_jax.data import pipeline, pixels, registry
from lit_jax.data.stream import Batch, BatchStream
from support import picture_cases
from support.picture_cases import CLASSES, COUNT, SIDE, expected, label

SHAPE = (SIDE, SIDE, 3)
KINDS = ("class_folders", "tfds")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forms of the same pictures, under one name each."""
    path = tmp_path_factory.mktemp("pictures")
    picture_cases.write_folders(path / "class_folders")
    picture_cases.write_tfds(path)
    (path / "pictures").rename(path / "tfds")
    return path


def stream(data_dir: Path, kind: str, batch_size: int = 4, **options: Any) -> BatchStream:
    options = {"kind": kind, "image_shape": SHAPE} | options
    name = kind if kind in KINDS else "class_folders"
    return pipeline.make_train_iterator(name, data_dir, "train", batch_size, 3, **options)


def take(batches: BatchStream, count: int) -> list[Batch]:
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_epoch_is_the_cropped_pictures_with_their_labels(
    data_dir: Path, kind: str, channels: int
) -> None:
    batches = take(stream(data_dir, kind, image_shape=(SIDE, SIDE, channels)), COUNT // 4)
    found = {}
    for batch in batches:
        assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32
        for image, number in zip(batch["image"], batch["label"], strict=True):
            found[image.tobytes()] = int(number)
    assert found == {expected(i, channels).tobytes(): label(i) for i in range(COUNT)}


def test_a_folder_has_no_labels(data_dir: Path) -> None:
    batches = stream(data_dir, "folder")
    assert set(batches.arrays) == set(next(batches)) == {"image"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [0, 2**20])
def test_readers_hosts_and_resume_give_the_same_batches(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str, memory: int
) -> None:
    monkeypatch.setattr(pixels, "KEPT_IN_MEMORY", memory)
    whole = take(stream(data_dir, kind, flip=True), 9)  # three epochs
    same(take(stream(data_dir, kind, flip=True, workers=2), 9), whole)
    hosts = [
        take(stream(data_dir, kind, flip=True, shard_index=h, shard_count=2), 9) for h in range(2)
    ]
    joined = [
        {name: np.concatenate([rows[name] for rows in pieces]) for name in pieces[0]}
        for pieces in zip(*hosts, strict=True)
    ]
    same(joined, whole)
    resumed = stream(data_dir, kind, flip=True)
    resumed.seek(5)
    same(take(resumed, 4), whole[5:])
    assert not np.array_equal(whole[0]["image"], take(stream(data_dir, kind), 1)[0]["image"])


def test_an_unreadable_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = picture_cases.write_folders(tmp_path / "class_folders")
    (root / "dog" / "bad.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"image dog/bad.png cannot be used: not an image"):
        stream(tmp_path, "class_folders")
    monkeypatch.setattr(pixels, "KEPT_IN_MEMORY", 0)
    batches = stream(tmp_path, "class_folders")
    with pytest.raises(ValueError, match=r"image dog/bad.png cannot be used: not an image"):
        take(batches, 4)


def test_shapes_that_do_not_fit(data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"\(8, 8, 4\).*square images with 1 or 3 channels"):
        stream(data_dir, "tfds", image_shape=(8, 8, 4))
    with pytest.raises(ValueError, match=r"\(8, 4, 3\).*square images"):
        stream(data_dir, "tfds", image_shape=(8, 4, 3))
    with pytest.raises(ValueError, match="several sizes; give image_shape"):
        stream(data_dir, "tfds", image_shape=None)


def test_changed_images_are_other_data(tmp_path: Path) -> None:
    root = picture_cases.write_folders(tmp_path / "class_folders")
    before = stream(tmp_path, "class_folders").identity
    assert stream(tmp_path, "class_folders").identity == before
    (root / "cat" / "00.png").unlink()
    assert stream(tmp_path, "class_folders").identity != before


def test_kind_of_a_data_set(data_dir: Path, tmp_path: Path) -> None:
    assert registry.dataset_kind(DataConfig(name="tfds", data_dir=str(data_dir))) == "tfds"
    assert registry.dataset_kind(DataConfig(kind="folder")) == "folder"
    with pytest.raises(ValueError, match="set data.kind to 'class_folders' or 'folder'"):
        registry.dataset_kind(DataConfig(name="class_folders", data_dir=str(data_dir)))
    source = registry.open_images(
        DataConfig(name="class_folders", data_dir=str(data_dir)), "folder"
    )
    assert len(source) == COUNT and source.classes == ()
    assert CLASSES[0] in source.name(0)
