"""Resumable output: folders and files, requests, shards, leftovers, completion."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.runs.lock import LOCK, InUseError
from lit_jax.runs.output import Output

REQUEST = {"model": "a", "seed": 1, "protocol": {"steps": (2, 3)}, "labels": None}
KEYS = ["00000", "00001", "00002"]


def opened(path: Path, request: Any = REQUEST, **options: Any) -> Output:
    return Output.open(path, request, "sample.json", ignore=("model",), **options)


def started(output: Output, keys: list[str] = KEYS) -> list[str]:
    """Begin, and return the keys without a shard."""
    missing = output.missing(keys, output.has)
    output.begin()
    return missing


def completed(path: Path) -> Path:
    with opened(path) as output:
        for key in started(output):
            output.save(key, images=np.full(2, int(key)))
        output.close(lambda: {"count": 6})
    return path


def tree(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_folder_from_the_first_shard_to_the_record(tmp_path: Path) -> None:
    out = tmp_path / "a/out"
    with opened(out) as output:
        assert not output.done and output.path == out
        assert tree(out) == [LOCK]  # nothing but the lock
        assert started(output) == KEYS
        output.save(KEYS[0], images=np.arange(3), labels=np.arange(2))
        assert output.has(KEYS[0]) and not output.has(KEYS[1])
        np.testing.assert_equal(output.load(KEYS[0])["labels"], [0, 1])
        assert output.load(KEYS[0], "images").keys() == {"images"}
        assert tree(out) == [LOCK, "request.json", "shards", "shards/00000.npz"]
        output.close(lambda: {"count": int(output.load(KEYS[0])["images"].sum())})
        assert output.done
    assert tree(out) == ["request.json", "sample.json"]
    assert json.loads((out / "sample.json").read_text()) == {"count": 3}
    assert json.loads((out / "request.json").read_text())["protocol"] == {"steps": [2, 3]}


def test_same_request_resumes_and_then_does_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyError), opened(out) as output:
        started(output)
        output.save("00001", x=np.zeros(1))
        raise KeyError  # the process fails
    with opened(out, REQUEST | {"model": "elsewhere"}) as output:
        assert started(output) == ["00000", "00002"]
        output.close(lambda: {})
    (out / "shards").mkdir()  # as after a kill between the last two steps
    with opened(out) as output:
        assert output.done
    assert tree(out) == ["request.json", "sample.json"]


def test_finished_output_needs_no_lock(tmp_path: Path) -> None:
    out = completed(tmp_path / "out")
    (out / LOCK).write_text("{}")
    assert opened(out).done


def test_another_request_is_refused_with_every_difference(tmp_path: Path) -> None:
    out = completed(tmp_path / "out")
    before = tree(tmp_path)
    other = REQUEST | {"seed": 2, "protocol": {"steps": [2]}, "labels": [7]}
    differences = r"labels is nothing, .* \[7\]; protocol.steps is \[2, 3\], .* \[2\]; seed is 1, "
    with pytest.raises(ValueError, match=f"out belongs to another request: {differences}.* 2; "):
        opened(out, other)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_damaged_request(tmp_path: Path, text: str) -> None:
    (tmp_path / "request.json").write_text(text)
    with pytest.raises(ValueError, match="request.json is damaged .*; choose another --out"):
        opened(tmp_path)
    assert tree(tmp_path) == ["request.json"]


def test_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds notes.txt and no request.json"):
        opened(tmp_path)
    opened(tmp_path, foreign=("samples.npz",)).release()
    (tmp_path / "samples.npz").touch()
    with pytest.raises(ValueError, match="holds samples.npz and no request.json"):
        opened(tmp_path, foreign=("samples.npz",))
    assert tree(tmp_path) == ["notes.txt", "samples.npz"]
    with pytest.raises(ValueError, match="is a file; --out is a folder"):
        opened(tmp_path / "notes.txt")


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".request.json.77.tmp").touch()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/.00000.npz.77.tmp").touch()
    (tmp_path / "request.json").write_text(json.dumps(REQUEST))
    with opened(tmp_path) as output:
        started(output)
        assert tree(tmp_path) == [LOCK, "request.json", "shards"]


def test_free_space_is_checked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9))
    refused = pytest.raises(ValueError, match="needs 2 GB for 9 images, 1 GB are free; make room")
    with refused, opened(tmp_path / "out") as output:
        output.begin(2 * 10**9, "9 images")
    assert tree(tmp_path) == []
    with opened(tmp_path / "out") as output:
        output.begin(10**9)


def test_two_jobs_on_one_place(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as output:
        started(output)
        with pytest.raises(InUseError, match="out is in use by process"):
            opened(tmp_path / "out")
    opened(tmp_path / "out").release()


def test_shards_of_another_kind(tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        done = {"00001"}
        assert output.missing(KEYS, done.__contains__) == ["00000", "00002"]
        assert output.file("00001", ".json") == tmp_path / "shards/00001.json"
        assert tree(tmp_path) == [LOCK]


@pytest.mark.parametrize("content", [b"", b"PK broken"])
def test_damaged_shard(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path) as output:
        started(output)
        output.save("00000", x=np.zeros(1))
        output.file("00000").write_bytes(content)
        with pytest.raises(ValueError, match="00000.npz is damaged .*; remove it and run"):
            output.load("00000")
        with pytest.raises(ValueError, match="damaged"):
            output.save("00000", x=np.zeros(1))
            output.load("00000", "y")


def test_record_that_the_command_writes_itself(tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        started(output, [])

        def finish() -> None:
            (tmp_path / "sample.json").write_text("{}")

        output.close(finish)
    assert opened(tmp_path).done


# --- a file with a work folder beside it ---


def test_file_with_its_work_folder(tmp_path: Path) -> None:
    out, work = tmp_path / "metrics.json", tmp_path / "metrics.json.work"
    with Output.beside(out, REQUEST) as output:
        assert started(output) == KEYS
        output.save("samples/00000", x=np.zeros(1))
        assert tree(work) == [LOCK, "request.json", "samples", "samples/00000.npz"]
    assert tree(tmp_path) == [work.name, *(f"{work.name}/{n}" for n in tree(work))]
    with pytest.raises(ValueError, match=r"metrics.json.work belongs to another request: seed"):
        Output.beside(out, REQUEST | {"seed": 2})
    with Output.beside(out, REQUEST) as output:
        assert started(output, ["samples/00000", "samples/00001"]) == ["samples/00001"]
        output.close(lambda: {"fid": 1.0, "request": output.request})
    assert tree(tmp_path) == ["metrics.json"]
    assert Output.beside(out, REQUEST).done
    with pytest.raises(ValueError, match="metrics.json belongs to another request: seed is 1"):
        Output.beside(out, REQUEST | {"seed": 2})
    assert Output.beside(out, REQUEST | {"seed": 2}, ignore=("seed",)).done


def test_work_folder_of_an_earlier_version(tmp_path: Path) -> None:
    work = tmp_path / "m.json.work"
    work.mkdir()
    (work / "request.json").write_text(json.dumps({"request": REQUEST}))
    with Output.beside(tmp_path / "m.json", REQUEST) as output:
        assert not output.done
    with pytest.raises(ValueError, match="another request"):
        Output.beside(tmp_path / "m.json", REQUEST | {"seed": 2})


def test_files_and_folders_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")
    with pytest.raises(ValueError, match="out.json is no result of this command"):
        Output.beside(tmp_path / "out.json", REQUEST)
    (tmp_path / "m.json.work").mkdir()
    (tmp_path / "m.json.work/notes").touch()
    with pytest.raises(ValueError, match="m.json.work exists and is no work folder"):
        Output.beside(tmp_path / "m.json", REQUEST)
    with pytest.raises(ValueError, match="is a folder; --out is a file"):
        Output.beside(tmp_path, REQUEST)
    assert tree(tmp_path) == ["m.json.work", "m.json.work/notes", "out.json"]
