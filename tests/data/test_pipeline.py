"""The grain pipeline: epochs, hosts, positions, flips, and early errors."""

from __future__ import annotations

import numpy as np
import pytest

from demo.digits import dataset
from lit_jax.config import DataConfig
from lit_jax.data import pipeline, pixels, registry


def _iterator(data_dir, batch_size=32, seed=3, **options):
    return pipeline.make_train_iterator("digits", data_dir, "train", batch_size, seed, **options)


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def _equal(first, second) -> bool:
    return all(
        np.array_equal(a[key], b[key])
        for a, b in zip(first, second, strict=True)
        for key in ("image", "label")
    )


def test_batch_layout_and_range(data_dir):
    batch = next(_iterator(data_dir))
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (32, 8, 8, 1) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (32,) and batch["label"].dtype == np.int32
    assert batch["image"].min() == -1.0 and batch["image"].max() == 1.0


def test_every_example_once_per_epoch_and_epochs_differ(data_dir):
    # Three epochs of 1,297 are 3,891 rows; 389 batches of 10 leave one row of the third out.
    batches = _take(_iterator(data_dir, batch_size=10), 389)
    rows = np.concatenate([b["image"].reshape(10, 64) for b in batches])
    labels = np.concatenate([b["label"] for b in batches])
    images, stored = dataset.load_split(data_dir, "train")
    expected = sorted(map(bytes, (images.reshape(-1, 64) / np.float32(127.5) - 1).astype("f4")))
    epochs = [rows[:1297], rows[1297:2594]]
    for epoch in epochs:
        assert sorted(map(bytes, epoch)) == expected
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(np.bincount(labels[:1297]), np.bincount(stored))


def test_seed_decides_the_order_and_neighbouring_seeds_are_not_shifted_epochs(data_dir):
    assert _equal(_take(_iterator(data_dir), 3), _take(_iterator(data_dir), 3))
    assert not _equal(_take(_iterator(data_dir), 3), _take(_iterator(data_dir, seed=4), 3))
    # Grain seeds epoch e with seed + e; unhashed seeds would repeat each other one epoch later.
    first, second = _iterator(data_dir, 1297, seed=0), _iterator(data_dir, 1297, seed=1)
    assert not _equal([_take(first, 2)[1]], _take(second, 1))


def test_hosts_together_read_the_global_batch_in_order(data_dir):
    whole = _take(_iterator(data_dir, batch_size=12), 120)  # beyond the end of an epoch
    hosts = [_iterator(data_dir, 12, shard_index=h, shard_count=3) for h in range(3)]
    for batch in whole:
        parts = [next(host) for host in hosts]
        assert parts[0]["label"].shape == (4,)
        joined = {key: np.concatenate([p[key] for p in parts]) for key in batch}
        assert _equal([joined], [batch])
    assert {host.position for host in hosts} == {120}


@pytest.mark.parametrize("shard_count", [1, 2, 4])
def test_any_number_of_hosts_goes_on_from_a_position(data_dir, shard_count):
    iterator = _iterator(data_dir, batch_size=100, flip=True)
    _take(iterator, 14)  # inside the second epoch
    expected = _take(iterator, 4)
    parts = []
    for host in range(shard_count):
        resumed = _iterator(
            data_dir, batch_size=100, flip=True, shard_index=host, shard_count=shard_count
        )
        resumed.seek(14)
        parts.append(_take(resumed, 4))
        assert resumed.position == 18
    for batch, *rows in zip(expected, *parts, strict=True):
        joined = {key: np.concatenate([r[key] for r in rows]) for key in batch}
        assert _equal([joined], [batch])


def test_arrays_are_those_of_a_global_batch(data_dir):
    iterator = _iterator(data_dir, batch_size=12, shard_count=3)
    assert iterator.arrays == {"image": ((12, 8, 8, 1), "float32"), "label": ((12,), "int32")}
    found = {name: (array.shape, array.dtype) for name, array in next(iterator).items()}
    assert found == {"image": ((4, 8, 8, 1), "float32"), "label": ((4,), "int32")}
    unlabelled = _iterator(data_dir, labels=False)
    assert set(next(unlabelled)) == set(unlabelled.arrays) == {"image"}


def test_flip_mirrors_about_half_and_depends_on_the_position(data_dir):
    plain = _take(_iterator(data_dir, batch_size=400), 2)
    flipped = _take(_iterator(data_dir, batch_size=400, flip=True), 2)
    fractions, masks = [], []
    for a, b in zip(plain, flipped, strict=True):
        same = np.all(a["image"] == b["image"], axis=(1, 2, 3))
        mirrored = np.all(a["image"][:, :, ::-1] == b["image"], axis=(1, 2, 3))
        assert np.all(same | mirrored)
        fractions.append(mirrored.mean())
        masks.append(mirrored)
    assert all(0.4 < f < 0.6 for f in fractions)
    assert not np.array_equal(*masks)
    assert _equal(flipped, _take(_iterator(data_dir, batch_size=400, flip=True), 2))


def test_records_read_on_demand_give_the_same_batches(data_dir, monkeypatch):
    expected = _take(_iterator(data_dir), 3)
    monkeypatch.setattr(pixels, "KEPT_IN_MEMORY", 1)
    assert _equal(_take(_iterator(data_dir), 3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10, "shard_count": 4}, "batch_size 10 is not divisible by 4 hosts"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 1298}, "batch_size 1298 exceeds the 1297 examples"),
        ({"batch_size": 4000, "shard_count": 2000}, "2000 hosts share the 1297 examples"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index 2 of shard_count 2"),
        ({"seed": -1}, "data seed is -1"),
    ],
)
def test_impossible_requests_fail_before_reading(data_dir, monkeypatch, options, message):
    monkeypatch.setattr(pixels.Pixels, "__getitem__", lambda *_: pytest.fail("a record was read"))
    with pytest.raises(ValueError, match=message):
        _iterator(data_dir, **options)


def test_unknown_names_and_missing_data_name_the_remedy(tmp_path, data_dir):
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        pipeline.make_train_iterator("digit", tmp_path, "train", 8, 0)
    with pytest.raises(ValueError, match="unknown split of .*digits/1.0.0 'test'.*heldout, train"):
        dataset.load_split(data_dir, "test")
    with pytest.raises(ValueError, match="unknown data.kind 'class_folder'; did you mean"):
        registry.dataset_kind(DataConfig(kind="class_folder"))
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="not prepared in .*python -m lit_jax.data digits"):
            _iterator(folder)
    assert list(tmp_path.iterdir()) == []
