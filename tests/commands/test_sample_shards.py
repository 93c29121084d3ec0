"""Shards, and the `.npz` that is written piece by piece."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_jax.commands.sample.job import merge
from lit_jax.runs.output import Output
from lit_jax.sampling.shards import Shards
from lit_jax.storage.npz import Member, write_npz


@pytest.mark.parametrize("count,size", [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_shards_cover_every_image_once(count: int, size: int) -> None:
    shards = Shards(count, size)
    spans = [shards.span(number) for number in range(len(shards))]
    assert [i for start, stop in spans for i in range(start, stop)] == list(range(count))
    assert len({shards.name(number) for number in range(len(shards))}) == len(shards)


def missing(shards: Shards, out: Output) -> list[int]:
    return out.missing(range(len(shards)), lambda number: out.has(shards.name(number)))


def test_what_is_not_on_disk_is_missing(tmp_path: Path) -> None:
    shards, folder = Shards(10, 4), tmp_path / "out"
    with Output.open(folder, {"count": 10}, "sample.json") as out:
        out.begin()
        assert missing(shards, out) == [0, 1, 2]
        out.save(shards.name(1), images=np.full((4, 2, 2, 1), 7, np.uint8))
        assert missing(shards, out) == [0, 2]
        assert out.load(shards.name(1), "images")["images"].max() == 7
        message = r"00001-of-00003.npz is damaged .*'latents.* remove it"
        with pytest.raises(ValueError, match=message):
            out.load(shards.name(1), "latents")
    half = folder / "shards/.00002-of-00003.npz.123.tmp"
    half.write_bytes(b"half")
    mine = folder / "mine.tmp"
    mine.write_text("not of the job")
    with Output.open(folder, {"count": 10}, "sample.json") as out:
        out.begin()
        assert not half.exists() and mine.exists() and missing(shards, out) == [0, 2]
        out.close(lambda: {"done": True})
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["mine.tmp", "request.json", "sample.json"]


def test_the_same_bytes_as_numpy(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    labels = np.arange(10, dtype=np.int32)
    np.savez(tmp_path / "numpy.npz", arr_0=images, labels=labels)
    pieces = (images[i : i + 4] for i in range(0, 10, 4))
    members = {
        "arr_0": Member(images.shape, np.uint8, pieces),
        "labels": Member(labels.shape, np.int32, [labels]),
    }
    write_npz(tmp_path / "ours.npz", members)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("old")
    broken = (1 / 0 for _ in range(1))
    with pytest.raises(ZeroDivisionError):
        write_npz(tmp_path / "a.npz", {"arr_0": Member((1,), np.uint8, broken)})  # type: ignore[arg-type]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_merging_holds_one_shard_in_memory(tmp_path: Path) -> None:
    """40 shards of 1 MB."""
    shape, size = (64, 64, 3), 85
    shards = Shards(40 * size, size)
    job: Any = SimpleNamespace(shards=shards, shapes={"images": shape})
    with Output.open(tmp_path, {}, "sample.json") as out:
        for number in range(40):
            out.save(shards.name(number), images=np.full((size, *shape), number, np.uint8))
        tracemalloc.start()
        merge(job, out, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 * size * 64 * 64 * 3
    with np.load(tmp_path / "samples.npz") as samples:
        assert list(samples) == ["arr_0"]
        assert np.all(samples["arr_0"][::size, 0, 0, 0] == np.arange(40))
