"""The encode job in this process, on eight virtual devices."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.commands.encode.job import encode
from lit_jax.commands.encode.shards import in_order, make_encoder
from lit_jax.config import SourceConfig
from lit_jax.data.crop import center_crop
from lit_jax.data.latents.schema import read_schema
from lit_jax.data.registry import open_source
from lit_jax.data.transforms import to_float
from support import autoencoder_cases, encode_cases, tiny_runs
from support.encode_cases import SIZE, config_for, stored
from support.models import vae_identity


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


def expected_moments(image: Any) -> np.ndarray:
    """[2, h, w, 2 L] of one image, one at a time and without the job."""
    pixels = to_float(center_crop(image, SIZE))
    model = autoencoder_cases.tiny()
    both = [pixels, pixels[:, ::-1]]
    return np.stack([np.asarray(autoencoder_cases.encode(model, view[None]))[0] for view in both])


def files_of(out: Path) -> dict[str, tuple[int, int]]:
    """Every file: inode and time of its last change."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths
    }


# --- what is written ---


def test_moments_of_the_images_and_their_mirror_images(
    finished: Path, vae: Path, images: Path
) -> None:
    source = open_source(config_for(vae, images).source)
    examples = stored(finished)
    assert len(examples) == len(source) == 21
    for index, example in enumerate(examples):
        assert example["name"].decode() == source.name(index)
        assert example["label"] == source.label(index)
        wanted = expected_moments(source.load(index))
        assert example["moments"].dtype == np.float32
        np.testing.assert_allclose(example["moments"], wanted, rtol=1e-5, atol=1e-5)
        # The latent of the mirror image is not the mirrored latent.
        assert np.abs(wanted[1] - wanted[0][:, ::-1]).max() > 0.1


def test_schema_and_files(finished: Path, vae: Path, images: Path) -> None:
    schema = read_schema(finished)
    assert schema.vae == dataclasses.asdict(vae_identity(vae))
    assert (schema.count, schema.skipped, schema.resolution) == (21, 0, SIZE)
    assert schema.latent_shape == (SIZE // 2, SIZE // 2, 4) and schema.mirrors
    assert schema.classes == ("class0", "class1", "class2") and not schema.captions
    source = open_source(config_for(vae, images).source)
    assert schema.source["sha256"] == source.listing_sha256()
    assert schema.source["kind"] == "class_folders" and schema.source["path"] == str(images)
    records = [f"1.0.0/latents-train.array_record-{k:05d}-of-00003" for k in range(3)]
    assert sorted(files_of(finished)) == [
        *("1.0.0/dataset_info.json", "1.0.0/features.json", "1.0.0/label.labels.txt"),
        *records,
        *("request.json", "schema.json", "skipped.json"),
    ]
    assert json.loads((finished / "skipped.json").read_text()) == {
        "count": 0,
        "reasons": {},
        "images": [],
    }


def test_same_call_again_does_nothing(finished: Path, vae: Path, images: Path) -> None:
    before = files_of(finished)
    (finished / "shards").mkdir()  # as after a kill between the last two acts
    said: list[str] = []
    config = config_for(vae, images, workers=5, max_skipped_fraction=0.5)
    assert encode(config, finished, said.append) == finished
    assert len(said) == 1 and "nothing to do" in said[0] and "21 images (0 skipped)" in said[0]
    assert files_of(finished) == before and not (finished / "shards").exists()


def test_float16_without_mirrors(finished: Path, vae: Path, images: Path, tmp_path: Path) -> None:
    config = config_for(vae, images, dtype="float16", mirrors=False)
    encode(config, tmp_path / "out", lambda _: None)
    for small, whole in zip(stored(tmp_path / "out"), stored(finished), strict=True):
        assert small["moments"].shape == (1, SIZE // 2, SIZE // 2, 8)
        assert small["moments"].dtype == np.float16
        np.testing.assert_allclose(small["moments"][0], whole["moments"][0], rtol=1e-3, atol=1e-5)


def test_captions(vae: Path, images: Path, tmp_path: Path) -> None:
    source = tmp_path / "captioned"
    shutil.copytree(images / "class0", source)
    for path in sorted(source.glob("*.png"))[1:]:
        path.with_suffix(".txt").write_text(f"a picture, {path.stem} é\n", encoding="utf-8")
    config = config_for(vae, source, max_skipped_fraction=0.2)
    config = dataclasses.replace(
        config, source=SourceConfig(kind="folder", path=str(source), captions=("txt",), split="own")
    )
    encode(config, tmp_path / "out", lambda _: None)
    schema = read_schema(tmp_path / "out")
    assert (
        schema.captions == ("txt",)
        and not schema.classes
        and (schema.count, schema.skipped) == (6, 1)
    )
    assert schema.split == "own"
    examples = stored(tmp_path / "out")
    assert [e["caption_txt"].decode() for e in examples] == [
        f"a picture, {e['name'].decode()[:3]} é" for e in examples
    ]
    assert "label" not in examples[0]
    listed = json.loads((tmp_path / "out/skipped.json").read_text())
    assert listed["images"] == [
        {"index": 0, "name": "000.png", "reason": "no caption: there is no 000.txt"}
    ]


def test_tfds_source(vae: Path, data_dir: Path, tmp_path: Path) -> None:
    config = config_for(vae, data_dir, shard_size=128, device_batch_size=16)
    source = SourceConfig(kind="tfds", path=str(data_dir), name="digits", split="heldout")
    encode(dataclasses.replace(config, source=source), tmp_path / "out", lambda _: None)
    examples, images = stored(tmp_path / "out"), open_source(source)
    assert len(examples) == 500 and read_schema(tmp_path / "out").split == "heldout"
    for index in (0, 127, 128, 499):
        assert examples[index]["label"] == images.label(index)
        wanted = expected_moments(images.load(index))
        np.testing.assert_allclose(examples[index]["moments"], wanted, rtol=1e-5, atol=1e-5)


# --- images that cannot be used ---


def spoil(root: Path) -> list[str]:
    """Four broken images; one of them is the last, so that a shard (of 1) has nothing."""
    (root / "class0/000.png").write_bytes(b"")
    (root / "class0/001x.jpg").write_bytes(b"<html>")
    whole = (root / "class1/004.png").read_bytes()
    (root / "class1/004.png").write_bytes(whole[: len(whole) // 2])
    (root / "class2/zzz.gif").symlink_to(root / "nowhere")
    return ["class0/000.png", "class0/001x.jpg", "class1/004.png", "class2/zzz.gif"]


def test_broken_images_are_skipped_and_listed(
    vae: Path, images: Path, finished: Path, tmp_path: Path
) -> None:
    broken = spoil(shutil.copytree(images, tmp_path / "images"))
    config = config_for(vae, tmp_path / "images", max_skipped_fraction=0.2, shard_size=7)
    said: list[str] = []
    encode(config, tmp_path / "out", said.append)
    listed = json.loads((tmp_path / "out/skipped.json").read_text())
    assert [image["name"] for image in listed["images"]] == broken
    assert [image["index"] for image in listed["images"]] == [0, 1, 9, 22]
    reasons = [image["reason"] for image in listed["images"]]
    assert reasons[0] == "the file is empty" and reasons[3] == "No such file or directory"
    assert "not an image" in reasons[1] and "truncated" in reasons[2]
    assert listed["count"] == 4 and sum(listed["reasons"].values()) == 4
    schema = read_schema(tmp_path / "out")
    assert (schema.count, schema.skipped) == (19, 4)
    assert "19 images" in said[-1] and "4 skipped, listed in" in said[-1]
    assert any("4 skipped" in line and "ETA" in line for line in said)
    # Nobody takes their place, and the others are what they are without them.
    whole = {example["name"]: example["moments"] for example in stored(finished)}
    found = {example["name"]: example["moments"] for example in stored(tmp_path / "out")}
    assert found.keys() == whole.keys() - {name.encode() for name in broken}
    for name, moments in found.items():
        np.testing.assert_allclose(moments, whole[name], rtol=1e-5, atol=1e-5)


def test_too_many_broken_images(vae: Path, images: Path, tmp_path: Path) -> None:
    """The run ends with an error; once more are allowed, the same shards complete the data set."""
    broken = spoil(shutil.copytree(images, tmp_path / "images"))
    config = config_for(vae, tmp_path / "images", max_skipped_fraction=0.13)  # 3 of 23, rounded up
    with pytest.raises(ValueError, match=r"4 images of 23 cannot be used so far, allowed are 3 \("):
        encode(config, tmp_path / "out", lambda _: None)
    listed = json.loads((tmp_path / "out/skipped.json").read_text())
    assert [image["name"] for image in listed["images"]] == broken
    assert not (tmp_path / "out/schema.json").exists()
    records = {n: t for n, t in files_of(tmp_path / "out").items() if "array_record" in n}
    assert len(records) == 3
    encode(dataclasses.replace(config, max_skipped_fraction=0.14), tmp_path / "out", lambda _: None)
    assert read_schema(tmp_path / "out").skipped == 4
    after = files_of(tmp_path / "out")
    assert {name: after[name] for name in records} == records


def test_hopeless_runs_end_early(vae: Path, images: Path, tmp_path: Path) -> None:
    source = shutil.copytree(images, tmp_path / "images")
    for path in source.glob("class0/*"):
        path.write_bytes(b"x")
    config = config_for(vae, source, shard_size=4)
    with pytest.raises(ValueError, match="4 images of 21 cannot be used so far, allowed are 1"):
        encode(config, tmp_path / "out", lambda _: None)
    assert len(list((tmp_path / "out/1.0.0").iterdir())) == 1
    # The same command again refuses at once, and does not go one shard further.
    with pytest.raises(ValueError, match="4 images of 21 cannot be used so far, allowed are 1"):
        encode(config, tmp_path / "out", lambda _: None)
    assert len(list((tmp_path / "out/1.0.0").iterdir())) == 1


def test_all_images_broken(vae: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"x")
    config = config_for(vae, tmp_path / "images", kind="folder", max_skipped_fraction=0.99)
    with pytest.raises(ValueError, match="1 images of 1 cannot be used"):
        encode(config, tmp_path / "out", lambda _: None)


# --- parts ---


def test_threads_are_ahead_but_not_far() -> None:
    asked: list[int] = []

    def work(index: int) -> Any:
        asked.append(index)
        return index

    with ThreadPoolExecutor(3) as pool:
        results = in_order(pool, work, iter(range(50)), ahead=5)
        assert [next(results) for _ in range(10)] == list(range(10))
        pool.submit(int).result()
        assert max(asked) <= 15
        assert list(results) == list(range(10, 50))


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_precision_reaches_the_program(precision: str) -> None:
    model = autoencoder_cases.tiny()
    params = autoencoder_cases.params_of(model)
    encode_batch, batch_size = make_encoder(model.config, params, True, precision, 1)
    assert batch_size == jax.local_device_count() == 8
    program = str(jax.make_jaxpr(encode_batch)(np.zeros((8, 4, 4, 3), np.uint8)))
    assert ("Precision.HIGHEST" in program) == (precision == "highest")
    assert ("Precision.HIGH," in program) == (precision == "high")


def test_tensorflow_is_not_loaded(vae: Path, images: Path, tmp_path: Path) -> None:
    arguments = [
        "encode",
        "--config=configs/encode_folder.py:classes",
        f"--out={tmp_path / 'out'}",
        f"--config.vae={vae}",
        f"--config.source.path={images}",
        f"--config.resolution={SIZE}",
    ]
    code = (
        "import sys; sys.argv[0] = 'lit_jax'\n"
        "from lit_jax.__main__ import main; main()\n"
        "print('loaded', [n for n in ('tensorflow', 'clu', 'torch') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tiny_runs.ROOT,
        env=tiny_runs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert read_schema(tmp_path / "out").count == 21
