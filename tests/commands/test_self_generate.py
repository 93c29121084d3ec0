"""The job of self-generated data from class labels: what it writes, resumes and refuses, and what
training makes of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from lit_jax.checkpoints.identity import params_sha256
from lit_jax.commands.self_generate.job import self_generate
from lit_jax.commands.train import job as train_job
from lit_jax.config import DataConfig, DistillConfig, ModelSpec, TrainConfig
from lit_jax.config.protocol import Protocol
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.data.latents import reader as latents
from lit_jax.data.latents.schema import DRAWN, LatentSchema, read_schema
from lit_jax.runs import requests
from lit_jax.training.metrics import read_trace
from support import kills, latent_cases, tiny_runs
from support.models import load_model_dir, vae_identity
from support.sampling import sample

COUNT = 11
PROTOCOL: dict[str, Any] = {"sampler": "ddim", "steps": "3", "cfg_scale": 2.0, "seed": 5}


def config_for(model: Path, vae: Path | str = "", **changes: Any) -> SelfGenerateConfig:
    """11 examples in shards of 4, 4 and 3."""
    fields = PROTOCOL | {"num_samples": COUNT, "batch_size": 3, "shard_size": 4} | changes
    return SelfGenerateConfig(model=str(model), vae=str(vae), **fields)


def examples_of(out: Path) -> tuple[LatentSchema, np.ndarray, list[int]]:
    """Schema, samples [N, h, w, L] and labels of a finished folder, in their order."""
    schema = read_schema(out)
    records = latents.open_records(out, schema, schema.split)
    found = [latents.decode_record(record, schema, schema.moments_shape) for record in records]
    moments_NxMxhxwxL = np.stack([example["moments"] for example in found])
    return schema, moments_NxMxhxwxL[:, 0], [int(example["label"]) for example in found]


@pytest.fixture(autouse=True)
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quicker to compile for than eight."""
    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, latent_model: Path, vae: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:2]
        patch.setattr(jax, "local_devices", lambda: devices)
        out = tmp_path_factory.mktemp("drawn") / "latents"
        return self_generate(config_for(latent_model, vae), out, lambda _: None)


def test_examples_are_those_of_sample(
    drawn: Path, latent_model: Path, vae: Path, tmp_path: Path
) -> None:
    """Bit for bit, with their labels; and everything that defines them is in the schema."""
    protocol = Protocol("ddim", "3", 2.0, seed=5)
    expected = sample(
        *(latent_model, tmp_path / "s", COUNT, protocol),
        batch_size=3,
        save_latents=True,
        shard_size=4,
    )
    schema, x_NxhxwxL, labels = examples_of(drawn)
    with np.load(expected / "latents.npz") as kept:
        np.testing.assert_array_equal(x_NxhxwxL, kept["arr_0"])
        assert labels == kept["labels"].tolist() == [*range(10), 0]
    assert (schema.moments, schema.dtype, schema.mirrors) == (DRAWN, "float32", False)
    assert schema.latent_shape == (8, 8, 4) and schema.resolution == 16
    assert schema.vae == dataclasses.asdict(vae_identity(vae))
    source = schema.source
    assert source["weights_sha256"] == params_sha256(load_model_dir(latent_model)[1])
    assert source["protocol"] == dataclasses.asdict(protocol)
    assert source["network_evaluations"] == 6 and schema.count == COUNT
    with Image.open(drawn / "grid.png") as grid:  # two rows of images, decoded
        assert grid.mode == "RGB" and grid.width > 10 * 16 and grid.height > 2 * 16


def train_config(drawn: Path, vae: Path | str, **changes: Any) -> TrainConfig:
    overrides = tiny_runs.SIZE | latent_cases.MODEL | {"input_size": 8, "num_classes": 10}
    data = DataConfig(name=drawn.name, data_dir=str(drawn.parent), vae=str(vae))
    return tiny_runs.run_config(
        data.data_dir, data=data, model=ModelSpec(name="LiT", overrides=overrides), **changes
    )


@pytest.mark.usefixtures("one_device")
def test_training_sees_the_samples_unchanged(drawn: Path, vae: Path, tmp_path: Path) -> None:
    """x_start of a step is the sample, bit for bit, in every epoch: no scale, no spread."""
    _, x_NxhxwxL, labels = examples_of(drawn)
    config = train_config(drawn, vae, batch_size=COUNT)
    run = train_job.check(config, tmp_path / "run", lambda text: None)
    for step in range(2):
        batch, seen = next(run.data), set()
        x_start = np.asarray(run.info.start_of(batch, jax.random.key(step)))
        for x_hxwxL, label in zip(x_start, batch["label"], strict=True):
            (index,) = np.flatnonzero((x_NxhxwxL == x_hxwxL).all(axis=(1, 2, 3)))
            assert labels[index] == label
            seen.add(int(index))
        assert seen == set(range(COUNT))
    assert run.info.vae == vae_identity(vae)  # which a student will record
    flipped = dataclasses.replace(config, data=dataclasses.replace(config.data, flip=True))
    with pytest.raises(ValueError, match="have no mirror images; set data.flip=False"):
        train_job.train(flipped, tmp_path / "flipped", lambda text: None)


def test_teacher_of_pixels(teacher: Path, vae: Path, tmp_path: Path) -> None:
    """Its samples are images to training, not clamped; there is no VAE to give."""
    out = self_generate(config_for(teacher), tmp_path / "drawn", lambda _: None)
    schema, x_NxHxWx1, _ = examples_of(out)
    assert schema.vae == {} and schema.latent_shape == (8, 8, 1) and np.abs(x_NxHxWx1).max() > 1
    config = tiny_runs.run_config(tmp_path, data=DataConfig("drawn", str(tmp_path)))
    run = train_job.check(config, tmp_path / "run", lambda text: None)
    assert run.info.vae is None
    batch = next(run.data)
    assert batch["image"].shape == (8, 8, 8, 1) and batch["image"].dtype == np.float32
    for image in batch["image"]:
        assert (x_NxHxWx1 == image).all(axis=(1, 2, 3)).any()
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, vae=str(vae)))
    with pytest.raises(ValueError, match="but data set 'drawn' holds pixels; leave it empty"):
        train_job.check(other, tmp_path / "run", lambda text: None)


def test_neither_batch_nor_shards_nor_devices(
    drawn: Path, latent_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    vae = json.loads((drawn / "schema.json").read_text())["vae"]
    model = shutil.copytree(latent_model, tmp_path / "named")
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"vae": vae}))
    config = config_for(model, batch_size=7, shard_size=100, num_samples=7)
    out = self_generate(config, tmp_path / "out", lambda _: None)
    schema, x_NxhxwxL, labels = examples_of(out)
    assert schema.vae == vae  # as the teacher's folder says
    _, expected_NxhxwxL, expected = examples_of(drawn)
    assert labels == expected[:7]
    np.testing.assert_allclose(x_NxhxwxL, expected_NxhxwxL[:7], atol=1e-4)
    with Image.open(out / "grid.png") as grid:  # no VAE to decode them: three channels
        assert grid.mode == "RGB"


def test_goes_on_where_it_was_stopped(
    drawn: Path, latent_model: Path, vae: Path, tmp_path: Path
) -> None:
    """As after kills: a shard is missing, another half written, and the end was not reached."""
    out = shutil.copytree(drawn, tmp_path / "out")
    first, second, third = sorted((out / "1.0.0").glob("*.array_record-*"))
    third.rename(third.with_name(f".{third.name}.0123456789ab.tmp"))
    second.unlink()
    for name in ("schema.json", "grid.png", "1.0.0/dataset_info.json"):
        (out / name).unlink()
    kept, said = first.stat().st_mtime_ns, list[str]()
    self_generate(config_for(latent_model, vae), out, said.append)
    assert "3 shards, 2 to do" in said[0] and "shard 2 of 3" in said[1]
    assert first.stat().st_mtime_ns == kept
    assert kills.contents(out) == kills.contents(drawn)

    said.clear()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    self_generate(config_for(latent_model, vae, batch_size=2), out, said.append)
    assert said == [f"nothing to do: {out} holds these 11 examples"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_request_is_refused(
    drawn: Path, latent_model: Path, teacher: Path, vae: Path, tmp_path: Path
) -> None:
    before = kills.contents(drawn)
    for changes, message in (
        ({"seed": 6}, r"protocol.seed is 5, asked for is 6; choose another --out"),
        ({"num_samples": 12, "steps": "4"}, "count is 11, asked for is 12; protocol.steps is 3"),
        ({"label_policy": "uniform"}, "label_policy is balanced, asked for is uniform"),
        ({"shard_size": 5}, "shard_size is 4, asked for is 5"),
    ):
        with pytest.raises(ValueError, match=message):
            self_generate(config_for(latent_model, vae, **changes), drawn)
    other = tiny_runs.save_model(tmp_path / "other", in_channels=4, patch_size=4, depth=1)
    with pytest.raises(ValueError, match="architecture.patch_size.*weights_sha256"):
        self_generate(config_for(other, vae), drawn)
    # Where the teacher lies is no part of the request.
    moved = shutil.copytree(latent_model, tmp_path / "moved")
    self_generate(config_for(moved, vae), drawn, lambda _: None)
    assert kills.contents(drawn) == before


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "nowhere"}, "nowhere is not a model folder"),
    "network": ({"model": "{vae}"}, "holds an AutoencoderKL; a denoiser"),
    "no vae": ({"vae": ""}, "does not record which VAE its latents of 4 channels belong to; give"),
    "vae": ({"vae": "{latent_model}"}, "holds a DiT; a VAE"),
    "channels": ({"vae": "{wide}"}, "has latents of 3 channels, .* in_channels 4; give the VAE"),
    "pixels": ({"model": "{teacher}"}, r"is a model of pixels \(1 channels\); leave it empty"),
    "sampler": ({"sampler": "dpm"}, "unknown sampler 'dpm'"),
    "policy": ({"label_policy": "even"}, "unknown label policy 'even'"),
    "dtype": ({"dtype": "float16"}, "unknown dtype 'float16'"),
    "prompts": ({"prompt_file": "p.txt"}, "prompt_file is p.txt, but .* on class labels; leave it"),
    "size": ({"size": (16, 16)}, r"size is \(16, 16\), but .* on class labels"),
    "seed": ({"seed": -1}, "seed -1 is not in 0"),
    "out": ({"out": "{vae}"}, "and no request.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_before_anything_happens(
    latent_model: Path, teacher: Path, vae: Path, tmp_path: Path, case: str
) -> None:
    changes, message = REFUSED[case]
    if case == "channels":
        latent_cases.save_vae(tmp_path / "models" / "wide", latent_channels=3)
    folders = {"latent_model": latent_model, "teacher": teacher, "vae": vae}
    folders["wide"] = tmp_path / "models" / "wide"
    asked = {"vae": vae, "model": latent_model} | {
        name: value.format(**folders) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    out = Path(asked.pop("out", tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        self_generate(config_for(**asked), out, lambda _: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "", "model is empty; give the model folder of the teacher"),
        ("num_samples", 0, "num_samples is 0; it must be an integer of at least 1"),
        ("size", (16,), r"size is \(16,\); it must be \(height, width\) in pixels"),
        ("split", "a[:5]", "must be the name of a whole split"),
    ],
)
def test_config_refuses(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfGenerateConfig(**({"model": "m"} | {field: value}))


def test_full_disk_and_broken_weights(
    latent_model: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(requests.shutil, "disk_usage", lambda path: usage(0, 0, 1000))
        with pytest.raises(ValueError, match="GB for 11 examples, 1e-06 GB are free; make room"):
            self_generate(config_for(latent_model, vae), tmp_path / "out", lambda _: None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FloatingPointError, match=r"example 0 is not finite"):
        config = config_for(latent_model, vae, cfg_scale=1e38)
        self_generate(config, tmp_path / "out", lambda _: None)
    assert not list((tmp_path / "out").rglob("*array_record*"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_student_trains_on_them(
    drawn: Path, latent_model: Path, vae: Path, tmp_path: Path
) -> None:
    distill = DistillConfig(teacher=str(latent_model))
    config = train_config(drawn, vae, total_steps=3, distill=distill)
    workdir = train_job.train(config, tmp_path / "run", lambda text: None)
    lines = read_trace(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["noise_distillation"] > 0
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["vae"] == dataclasses.asdict(vae_identity(vae))


def draw(out: Path, model: str, vae: str) -> None:
    self_generate(config_for(Path(model), vae), out)


@pytest.mark.slow
def test_survives_kills(latent_model: Path, vae: Path, tmp_path: Path) -> None:
    run = functools.partial(draw, model=str(latent_model), vae=str(vae))
    assert kills.survives_kills(run, tmp_path, 7, seed=random.randrange(10**6)) >= 7
