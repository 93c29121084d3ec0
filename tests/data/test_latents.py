"""Latents as training data: records, mirror images, epochs, hosts, and early errors."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lit_jax.data import pipeline
from lit_jax.data.latents import reader as latents
from lit_jax.data.latents.schema import dataset_folder, read_schema
from lit_jax.data.stream import BatchStream
from support import latent_cases
from support.latent_cases import COUNT, NAME


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latent_cases.save_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    path = tmp_path_factory.mktemp("latents")
    latent_cases.write_latents(path / NAME, vae)
    return path


def stream(data_dir: Path, batch_size: int = COUNT, seed: int = 3, **options: Any) -> BatchStream:
    return pipeline.make_train_iterator(NAME, data_dir, "train", batch_size, seed, **options)


def take(batches: BatchStream, count: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(count)]


def marks(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The number that says which image a row is; negative for its mirror image."""
    return batch["moments"][:, 0, 0, 0]


def numbers(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Which image a row is, mirrored or not."""
    mark = marks(batch)
    return np.where(mark < 0, -1 - mark, mark).astype(int)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batch_holds_what_was_stored(tmp_path: Path, vae: Path, dtype: str) -> None:
    latent_cases.write_latents(tmp_path / NAME, vae, dtype=dtype)
    batches = stream(tmp_path)
    assert batches.arrays == {"moments": ((COUNT, 4, 4, 8), dtype), "label": ((COUNT,), "int32")}
    batch = next(batches)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == batches.arrays
    assert sorted(numbers(batch)) == list(range(COUNT))
    for row, number in enumerate(numbers(batch)):
        np.testing.assert_array_equal(batch["moments"][row], latent_cases.moments(number, dtype)[0])
        assert batch["label"][row] == number % 3


def test_records_are_read_as_tfds_reads_them(data_dir: Path) -> None:
    schema = read_schema(data_dir / NAME)
    records = latents.open_records(data_dir / NAME, schema, "train")
    source = tfds.builder_from_directory(dataset_folder(data_dir / NAME)).as_data_source("train")
    assert len(records) == len(source) == COUNT
    for record, expected in zip(records, source, strict=True):
        found = latents.decode_record(record, schema, schema.moments_shape)
        np.testing.assert_array_equal(found["moments"], expected["moments"])
        assert found["moments"].dtype == expected["moments"].dtype
        assert found["label"] == expected["label"]


def test_every_image_once_per_epoch(data_dir: Path) -> None:
    epochs = np.concatenate([numbers(b) for b in take(stream(data_dir, 5), COUNT)])
    epochs = epochs.reshape(5, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_mirror_is_chosen_per_example_and_keeps_order_and_labels(data_dir: Path) -> None:
    plain, flipped = take(stream(data_dir), 20), take(stream(data_dir, flip=True), 20)
    mirrored = np.stack([marks(batch) < 0 for batch in flipped])
    assert 0.4 < mirrored.mean() < 0.6
    assert mirrored.any() and not mirrored.all(axis=1).any()
    assert len({tuple(row) for row in mirrored}) == 20
    assert not any((marks(batch) < 0).any() for batch in plain)
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(numbers(a), numbers(b))
        np.testing.assert_array_equal(a["label"], b["label"])
    batch = flipped[0]
    row = int(np.flatnonzero(marks(batch) < 0)[0])
    stored = latent_cases.moments(numbers(batch)[row])
    np.testing.assert_array_equal(batch["moments"][row], stored[1])
    # The mirror of the moments would be another latent.
    assert not np.array_equal(batch["moments"][row], stored[0][:, ::-1])


def test_choice_of_mirrors_depends_on_the_seed(data_dir: Path) -> None:
    first, again, other = (
        [marks(batch).tolist() for batch in take(stream(data_dir, seed=seed, flip=True), 3)]
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_hosts_and_worker_processes_share_the_global_stream(data_dir: Path) -> None:
    expected = take(stream(data_dir, 8, flip=True), 12)[7:]
    hosts = [
        stream(data_dir, 8, flip=True, shard_index=h, shard_count=2, workers=2 * h)
        for h in range(2)
    ]
    for host in hosts:
        host.seek(7)
    for batch in expected:
        parts = [next(host) for host in hosts]
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), batch[name])
    for host in hosts:
        host.close()


@pytest.mark.parametrize("captions", [(), ("txt",)])
def test_data_without_classes_has_no_labels(
    tmp_path: Path, vae: Path, captions: tuple[str, ...]
) -> None:
    latent_cases.write_latents(tmp_path / NAME, vae, classes=(), captions=captions)
    batches = stream(tmp_path)
    assert set(next(batches)) == set(batches.arrays) == {"moments"}


def test_mirrors_that_are_not_there(tmp_path: Path, vae: Path) -> None:
    latent_cases.write_latents(tmp_path / NAME, vae, mirrors=False)
    assert sorted(numbers(next(stream(tmp_path)))) == list(range(COUNT))
    with pytest.raises(ValueError, match="data.flip is True, but .* have no mirror images"):
        stream(tmp_path, flip=True)


def test_identity_is_that_of_the_schema(data_dir: Path, tmp_path: Path, vae: Path) -> None:
    latent_cases.write_latents(tmp_path / "same" / NAME, vae)
    latent_cases.write_latents(tmp_path / "half" / NAME, vae, dtype="float16")
    first, same, half = (
        stream(p).identity for p in (data_dir, tmp_path / "same", tmp_path / "half")
    )
    assert set(first) == {"data schema sha256"}
    assert first == same != half


def spoil(folder: Path, case: str) -> None:
    """Damages a folder of latents."""
    if case == "count":
        latent_cases.change_schema(folder, count=COUNT + 1)
    elif case == "file":
        latent_cases.shard_file(folder, 1, 3).unlink()
    elif case == "cut":
        path = latent_cases.shard_file(folder, 2, 3)
        path.write_bytes(path.read_bytes()[:-100])
    elif case == "info":
        (folder / "1.0.0" / "dataset_info.json").unlink()
    elif case == "shape":
        latent_cases.change_schema(folder, latent_shape=(8, 4, 4))
    elif case == "schema":
        (folder / "schema.json").unlink()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("count", "holds 23 train examples, its schema records 24"),
        ("file", "lacks 1 of 3 files, among them latents-train.array_record-00001-of-00003"),
        ("cut", "the 3 files in .* have .* bytes, not .*; copy the folder again"),
        ("info", "1.0.0 is not a complete data set .*copy the folder again"),
        ("shape", r"do not hold moments \(2, 8, 4, 8\) float32"),
        ("schema", "unknown data set 'tiny_latents'.*holds no latents.*lit_jax encode"),
    ],
)
def test_damaged_data_is_refused(tmp_path: Path, vae: Path, case: str, message: str) -> None:
    latent_cases.write_latents(tmp_path / NAME, vae)
    spoil(tmp_path / NAME, case)
    with pytest.raises(ValueError, match=message):
        stream(tmp_path)


def test_impossible_requests(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 24 exceeds the 23 examples of tiny_latents"):
        stream(data_dir, 24)
    with pytest.raises(ValueError, match="unknown split of .* 'test'.*known: train"):
        pipeline.make_train_iterator(NAME, data_dir, "test", 4, 0)


def test_more_files_than_the_limit(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of a data set stay open, and ImageNet has more than a program may usually have."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (514, 4096))
    stream(data_dir)
    assert asked == [(515, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (514, 514))
    with pytest.raises(ValueError, match=r"keep 515 files open, the limit is 514; .*ulimit -n 515"):
        stream(data_dir)
