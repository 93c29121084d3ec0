"""The encode job on a folder that holds something: going on, doing nothing, refusing."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from lit_jax.commands.encode import job
from lit_jax.commands.encode.job import encode
from lit_jax.config import EncodeConfig
from lit_jax.runs import requests
from support import encode_cases, tiny_runs
from support.encode_cases import config_for


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_cases.save_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_cases.save_images(tmp_path_factory.mktemp("images") / "train")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vae: Path, images: Path) -> Path:
    """The 21 images, in 3 shards of at most 8."""
    return encode(
        config_for(vae, images), tmp_path_factory.mktemp("out") / "latents", lambda _: None
    )


def files_of(out: Path) -> dict[str, tuple[int, int]]:
    """Every file: inode and time of its last change."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths
    }


def test_missing_shards_are_done_and_no_others(
    finished: Path, vae: Path, images: Path, tmp_path: Path
) -> None:
    """As after a kill: no records, half of them, or records without their JSON file."""
    out = tmp_path / "out"
    config = config_for(vae, images)

    class Stop(Exception):
        pass

    def stop(results: Any, found: Any) -> None:
        if len(found) == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(job, "require_few_skipped", stop)
        encode(config, out, lambda _: None)
    records = sorted((out / "1.0.0").iterdir())
    assert [path.name[-8:] for path in records] == ["of-00003"] * 2
    (out / "shards/00001.json").unlink()
    before = files_of(out)
    said: list[str] = []
    encode(config, out, said.append)
    assert "3 shards, 2 to do" in said[0]
    after = files_of(out)
    first, second = (f"1.0.0/{path.name}" for path in records)
    assert after[first] == before[first] and after[second] != before[second]
    for name in files_of(finished):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_records_that_were_cut_are_done_again(
    finished: Path, vae: Path, images: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    records = sorted((out / "1.0.0").glob("*record*"))
    sizes = [path.stat().st_size for path in records]
    (out / "schema.json").unlink()
    (out / "shards").mkdir()
    for shard, count in enumerate((8, 8, 5)):
        result = {"count": count, "num_bytes": sizes[shard], "skipped": []}
        result |= {"buckets": [], "truncated": 0}
        (out / f"shards/{shard:05d}.json").write_text(json.dumps(result))
    records[0].write_bytes(records[0].read_bytes()[:-1])
    records[1].unlink()
    said: list[str] = []
    encode(config_for(vae, images), out, said.append)
    assert "3 shards, 2 to do" in said[0]
    for name in files_of(finished):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_images_and_vae_may_be_moved(
    finished: Path, vae: Path, images: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(images, tmp_path / "elsewhere")
    same = shutil.copytree(vae, tmp_path / "other_name")
    said: list[str] = []
    encode(config_for(same, moved), finished, said.append)
    assert "nothing to do" in said[0]


OTHER_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "resolution": ({"resolution": 32}, "resolution is 16, asked for is 32"),
    "dtype": ({"dtype": "float16"}, "dtype is float32, asked for is float16"),
    "mirrors": ({"mirrors": False}, "mirrors is True, asked for is False"),
    "precision": ({"precision": "default"}, "precision is highest, asked for is default"),
    "shards": ({"shard_size": 9}, "shard_size is 8, asked for is 9"),
    "batch": ({"device_batch_size": 3}, "device_batch_size is 2, asked for is 3"),
    "two": ({"dtype": "float16", "shard_size": 9}, "dtype .*; shard_size "),
}


@pytest.mark.parametrize("case", OTHER_REQUESTS)
def test_another_request_is_refused(case: str, finished: Path, vae: Path, images: Path) -> None:
    changes, message = OTHER_REQUESTS[case]
    before = files_of(finished)
    with pytest.raises(ValueError, match=f"{finished} belongs to another request: {message}"):
        encode(config_for(vae, images, **changes), finished, lambda _: None)
    assert files_of(finished) == before


def test_other_images_or_vae_are_refused(
    finished: Path, vae: Path, images: Path, tmp_path: Path
) -> None:
    more = shutil.copytree(images, tmp_path / "more")
    shutil.copy(more / "class0/000.png", more / "class0/new.png")
    message = (
        r"source.images is 21, asked for is 22; source.sha256 is \w{12}\.\.\., asked for is"
        r" \w{12}\.\.\.; choose another --out"
    )
    with pytest.raises(ValueError, match=message):
        encode(config_for(vae, more), finished, lambda _: None)
    other = encode_cases.save_vae(tmp_path / "other", scaling_factor=0.5)
    with pytest.raises(ValueError, match="vae.scaling_factor is 0.18215, asked for is 0.5"):
        encode(config_for(other, images), finished, lambda _: None)


def assert_refused(config: EncodeConfig, out: Path, message: str) -> None:
    """The message, and nothing new on disk."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(ValueError, match=message):
        encode(config, out, lambda _: None)
    assert sorted(out.parent.rglob("*")) == before


def test_refusals_before_anything_is_written(
    vae: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "make_encoder", None)  # nothing is compiled
    out = tmp_path / "out"
    assert_refused(
        config_for(vae, images, resolution=17), out, "17 is not a multiple of 2.* 16 or 18"
    )
    assert_refused(
        config_for(vae, images, resolution=1), out, "is not a multiple of 2, .*; take 2$"
    )
    assert_refused(config_for(tmp_path / "no", images), out, "no is not a model folder")
    model = tiny_runs.save_model(tmp_path / "dit")
    assert_refused(config_for(model, images), out, "holds a DiT; a VAE .AutoencoderKL. is needed")
    grey = encode_cases.save_vae(tmp_path / "grey", in_channels=1)
    assert_refused(config_for(grey, images), out, "takes 1 channels; images have 3")
    assert_refused(config_for(vae, tmp_path / "no"), out, "source.path .*no is missing")
    assert_refused(config_for(vae, images, kind="tfds"), out, "holds no prepared data set")
    assert_refused(config_for(vae, images), tmp_path / "dit", r"holds config.json, params")
    (tmp_path / "file").touch()
    assert_refused(config_for(vae, images), tmp_path / "file", "file is a file; --out is a folder")
    assert_refused(config_for(vae, images), tmp_path / "file/out", "file is a file, not a folder")
    assert_refused(config_for(vae, images), images / "out", "out lies in the folder of the images")
    assert_refused(
        config_for(vae, images), Path("gs://bucket/out"), "no path of a mounted file system"
    )


def test_a_finished_folder_must_be_whole(finished: Path, vae: Path, images: Path) -> None:
    (path, *_) = (finished / "1.0.0").glob("*record-00001*")
    content = path.read_bytes()
    try:
        path.unlink()
        with pytest.raises(ValueError, match="lacks 1 of 3 files"):
            encode(config_for(vae, images), finished, lambda _: None)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_damaged_request(vae: Path, images: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "request.json").write_text(text)
    assert_refused(config_for(vae, images), tmp_path, "request.json is damaged")


def test_unfinished_request_of_a_killed_run_is_no_obstacle(
    vae: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / ".request.json.77.tmp").touch()
    encode(config_for(vae, images), tmp_path, lambda _: None)
    assert not list(tmp_path.glob(".*"))


def test_disk_space(
    vae: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    message = r"a/out needs 0.000485 GB for 21 images, 0.000485 GB are free; make room, or"
    needed = 21 * (2 * 8 * 8 * 8 * 4 + 256) + 3 * 131072
    monkeypatch.setattr(requests.shutil, "disk_usage", lambda _: usage(needed - 1))
    assert_refused(
        config_for(vae, images),
        tmp_path / "a/out",
        message,
    )
    monkeypatch.setattr(requests.shutil, "disk_usage", lambda _: usage(needed))
    encode(config_for(vae, images), tmp_path / "a/out", lambda _: None)
