"""The training job on captions: a text-to-image LiT from a PixArt, on latents with features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from lit_jax.checkpoints.identity import TEXT_ENCODER, VAE
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.train import job
from lit_jax.config import (
    DataConfig,
    DistillConfig,
    GridConfig,
    InheritConfig,
    ModelSpec,
    OptimizerConfig,
    TrainConfig,
)
from lit_jax.models import registry
from lit_jax.training.metrics import read_trace
from support import latent_cases, tiny_runs
from support.latent_cases import NAME, TEXT
from support.models import load_model_dir
from support.train_runs import reproducible

SIZE: dict[str, Any] = {
    "input_size": 4,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 6,
    "model_max_length": 5,
}
LIT: dict[str, Any] = SIZE | {"mixer": "linear", "num_heads": 1, "cross_num_heads": 2}
KINDS = ("long.txt", "short.txt")

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> DataConfig:
    """Latents of two sizes with two kinds of captions."""
    path = tmp_path_factory.mktemp("captioned")
    fields: dict[str, Any] = {"classes": (), "captions": KINDS, "text": True, "mirrors": False}
    latent_cases.write_latents(path / NAME, vae, **fields)
    latent_cases.write_latents(path / "buckets", vae, sizes=((8, 8), (12, 4)), **fields)
    return DataConfig(name=NAME, data_dir=str(path), vae=str(vae), caption_weights=(0.6, 0.4))


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "pixart"
    config = registry.model_config("PixArt", **SIZE)
    save_model_dir(path, config, tiny_runs.random_params(config, 1), {"source": "random"})
    return path


def run_config(
    data: DataConfig, model: dict[str, Any] | None = None, **changes: Any
) -> TrainConfig:
    """A short run of the tiny text-to-image LiT that logs every step."""
    config = TrainConfig(
        total_steps=3,
        batch_size=4,
        model=ModelSpec(name="PixArt", overrides=LIT | (model or {})),
        data=data,
        log_every=1,
        checkpoint_every=1,
    )
    return dataclasses.replace(config, **changes)


def distilled(data: DataConfig, pixart: Path, **changes: Any) -> TrainConfig:
    teacher = DistillConfig(teacher=str(pixart), noise_weight=1.0)
    return run_config(data, distill=teacher, inherit=InheritConfig(source=str(pixart)), **changes)


def test_walk(captioned: DataConfig, pixart: Path, tmp_path: Path) -> None:
    """Inherited and distilled: what is written, what is frozen, what the folder remembers."""
    said: list[str] = []
    config = distilled(captioned, pixart)
    workdir = job.train(config, tmp_path / "run", said.append)
    lines = read_trace(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["noise_distillation"] > 0 for line in lines)
    report = json.loads((workdir / "inheritance.json").read_text())
    assert "y_embedder/null_caption" in report["frozen"]
    assert ModelFolder(workdir).vae is not None
    found = ModelFolder(workdir).text_encoder
    assert found is not None and found.sha256 == TEXT["encoder"]["sha256"]

    _, params = load_model_dir(workdir)
    # The encoding of the empty prompt of the data, not the source's, and never trained.
    np.testing.assert_array_equal(params["y_embedder"]["null_caption"], latent_cases.null_caption())
    _, source = load_model_dir(pixart)
    cross = params["blocks"]["cross_attn"]["q"]["kernel"]
    assert np.any(cross != source["blocks"]["cross_attn"]["q"]["kernel"])
    np.testing.assert_allclose(cross, source["blocks"]["cross_attn"]["q"]["kernel"], atol=1e-3)


def test_first_loss_is_the_teachers_when_everything_is_inherited(
    captioned: DataConfig, pixart: Path, tmp_path: Path
) -> None:
    """A softmax student with all weights predicts what the teacher predicts: the captions, dropped
    ones included, reach both alike."""
    config = distilled(captioned, pixart, batch_size=16, total_steps=1)
    config = dataclasses.replace(
        config,
        model=ModelSpec(name="PixArt", overrides=SIZE | {"class_dropout_prob": 0.5}),
        inherit=InheritConfig(source=str(pixart), policy="all"),
    )
    workdir = job.train(config, tmp_path / "run", lambda text: None)
    (line,) = read_trace(workdir / "metrics.jsonl")
    assert line["noise_distillation"] < 1e-10 < line["mse"]
    assert line["variance_distillation"] < 1e-10


@pytest.mark.slow
def test_batches_of_several_sizes_and_resume(
    captioned: DataConfig, pixart: Path, tmp_path: Path
) -> None:
    """Every shape is compiled once; a run that was stopped goes on as if nothing had happened."""
    data = dataclasses.replace(captioned, name="buckets")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said: list[str] = []
    came = OptimizerConfig(name="came", learning_rate=1e-3)
    job.train(distilled(data, pixart, total_steps=8, optimizer=came), whole, said.append)
    compiled = [text for text in said if "compiled the step" in text]
    assert len(compiled) == 2
    assert any("[4, 4, 4, 8]" in text for text in compiled)
    assert any("[4, 6, 2, 8]" in text for text in compiled)
    for steps in (3, 8):
        config = distilled(data, pixart, total_steps=steps, optimizer=came)
        job.train(config, parts, lambda text: None)
    assert reproducible(whole) == reproducible(parts)
    with pytest.raises(ValueError, match="was trained with optimizer.name 'came', now 'adamw'"):
        job.train(distilled(data, pixart, total_steps=9), parts, lambda text: None)
    other = dataclasses.replace(data, caption_weights=(0.5, 0.5))
    config = distilled(other, pixart, total_steps=9, optimizer=came)
    with pytest.raises(ValueError, match=r"data.caption_weights \[0.6, 0.4\], now \[0.5, 0.5\]"):
        job.train(config, parts, lambda text: None)


def test_learns_from_captions(captioned: DataConfig, tmp_path: Path) -> None:
    """Weights of the kinds of captions, and dropout, change what is learned."""
    traces = []
    for number, (weights, dropout) in enumerate([((1, 0), 0.1), ((0, 1), 0.1), ((1, 0), 0.9)]):
        data = dataclasses.replace(captioned, caption_weights=weights)
        config = run_config(data, {"class_dropout_prob": dropout})
        workdir = job.train(config, tmp_path / str(number), lambda text: None)
        traces.append([line["loss"] for line in read_trace(workdir / "metrics.jsonl")])
    # A new network predicts zero, whatever it is told; from the second step on it listens.
    assert len({tuple(trace[1:]) for trace in traces}) == 3


def test_grid_is_drawn_for_captions_of_the_data(
    captioned: DataConfig, pixart: Path, tmp_path: Path
) -> None:
    grid = GridConfig(every=1, count=3, sampler="dpm_solver", steps="2", cfg_scale=4.5)
    config = distilled(captioned, pixart, total_steps=1, sample=grid)
    job.train(config, tmp_path / "run", lambda text: None)
    with Image.open(tmp_path / "run" / "samples" / "0000001.png") as image:
        assert image.size[0] >= 3 * 8 and len(set(image.getdata())) > 10
    for changes, message in (
        ({"sampler": "dpm"}, "sampler 'dpm'.*dpm_solver"),
        ({"steps": "ddim25"}, "steps 'ddim25' pick timesteps, but a DPM solver chooses its own"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan; it must be a finite number"),
        ({"count": 100}, "batch_size 100 exceeds the 23 examples"),
    ):
        bad = dataclasses.replace(config, sample=dataclasses.replace(grid, **changes))
        with pytest.raises(ValueError, match=message):
            job.train(bad, tmp_path / "bad", lambda text: None)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"caption_weights": (1.0,)}, {}, r"\(1.0,\), but .* has 2 kinds of captions: long.txt"),
        ({"vae": ""}, {}, "data.vae is empty; give the model folder of the VAE that made"),
        ({"flip": True}, {}, "captions in .* would not fit mirror images"),
        ({}, {"caption_channels": 7}, "caption_channels 6, the model 7"),
        ({}, {"model_max_length": 300}, "model_max_length 5, the model 300"),
        ({}, {"model_max_length": None}, "model_max_length 5, the model None"),
        ({}, {"input_size": 8}, r"image_size \(4, 4\), the model \(8, 8\)"),
        ({}, {"micro_condition": True, "hidden_size": 24}, "the data hold no original sizes"),
        ({"name": "digits", "vae": ""}, {}, "holds no features of a text encoder"),
    ],
)
def test_refused(
    captioned: DataConfig, tmp_path: Path, data: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    config = run_config(dataclasses.replace(captioned, **data), model)
    with pytest.raises(ValueError, match=message):
        job.train(config, tmp_path / "run", lambda text: None)
    assert not (tmp_path / "run").exists()


def test_captions_need_a_model_that_hears_them(captioned: DataConfig, tmp_path: Path) -> None:
    size = tiny_runs.SIZE | latent_cases.MODEL | {"num_classes": 0}
    config = run_config(captioned)
    config = dataclasses.replace(config, model=ModelSpec(name="LiT", overrides=size))
    with pytest.raises(
        ValueError, match=r"caption_weights is \(0.6, 0.4\), but LiT is conditioned"
    ):
        job.train(config, tmp_path / "run", lambda text: None)
    plain = dataclasses.replace(config, data=dataclasses.replace(captioned, caption_weights=()))
    job.train(plain, tmp_path / "run", lambda text: None)
    buckets = dataclasses.replace(plain, data=dataclasses.replace(plain.data, name="buckets"))
    with pytest.raises(ValueError, match="2 aspect ratios, a LiT takes one"):
        job.train(buckets, tmp_path / "other", lambda text: None)


@pytest.mark.parametrize("role", ["teacher", "source"])
@pytest.mark.parametrize("entry", [VAE, TEXT_ENCODER])
def test_origins_of_other_models_must_be_those_of_the_data(
    captioned: DataConfig, pixart: Path, tmp_path: Path, role: str, entry: str
) -> None:
    """A teacher, or a source, that remembers another VAE or text encoder."""
    stranger = tmp_path / "stranger"
    config, params = load_model_dir(pixart)
    save_model_dir(stranger, config, params, {"source": "random"})
    content = json.loads((stranger / "config.json").read_text())
    known = json.loads((Path(captioned.data_dir) / NAME / "schema.json").read_text())
    identity = known["vae"] if entry == VAE else known["text"]["encoder"]
    for hashes in ("1", "2"):
        changed = "encoder_sha256" if entry == VAE else "sha256"
        content[entry] = identity | ({changed: hashes * 64} if hashes == "2" else {})
        (stranger / "config.json").write_text(json.dumps(content))
        run = run_config(
            captioned,
            distill=DistillConfig(teacher=str(stranger if role == "teacher" else pixart)),
            inherit=InheritConfig(source=str(stranger if role == "source" else pixart)),
        )
        if hashes == "1":
            job.check(run, tmp_path / "run", lambda text: None)
        else:
            with pytest.raises(ValueError, match=f"of {role} .*stranger belong to the"):
                job.check(run, tmp_path / "run", lambda text: None)


def test_teacher_of_another_kind(
    captioned: DataConfig, teacher: Path, pixart: Path, tmp_path: Path
) -> None:
    config = run_config(captioned, distill=DistillConfig(teacher=str(teacher)))
    with pytest.raises(ValueError, match="is a DiT, the student a PixArt; one is conditioned on"):
        job.train(config, tmp_path / "run", lambda text: None)
    for changes, message in (
        ({"input_size": 8}, r"image_size=\(8, 8\), the student \(4, 4\)"),
        ({"pe_interpolation": 2.0}, "pe_interpolation=2.0, the student 1.0"),
    ):
        other = tmp_path / "other"
        size = registry.model_config("PixArt", **(SIZE | changes))
        save_model_dir(other, size, tiny_runs.random_params(size), {}, overwrite=True)
        config = run_config(captioned, distill=DistillConfig(teacher=str(other)))
        with pytest.raises(ValueError, match=message):
            job.train(config, tmp_path / "run", lambda text: None)
    assert jax.process_count() == 1 and not (tmp_path / "run").exists()
