"""The job of self-generated data from prompts: the images of `generate` with their features, and a
text-to-image student that trains on them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.commands.generate.job import generate
from lit_jax.commands.self_generate.job import self_generate
from lit_jax.commands.train import job as train_job
from lit_jax.config import (
    DataConfig,
    DistillConfig,
    InheritConfig,
    ModelSpec,
    TextConfig,
    TrainConfig,
)
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.data.latents import reader as latents
from lit_jax.data.latents.schema import read_null_caption, read_schema
from lit_jax.data.pipeline import make_train_iterator
from lit_jax.data.transforms import to_uint8
from lit_jax.models.functional import with_params
from lit_jax.sampling.text_features import load_text_encoder
from lit_jax.training.metrics import read_trace
from support import generate_cases, kills
from support.generate_cases import PIXART, PROMPTS, Folders, pixels, prompt_file
from support.models import load_model_dir, text_encoder_identity, vae_identity

LENGTH = 30
ASKED = (PROMPTS[2], PROMPTS[4], PROMPTS[2])
COUNT = 5
"""Two images of the second prompt, and three of the first: it is there twice."""

TEXT_PROTOCOL: dict[str, Any] = {
    "sampler": "dpm_solver",
    "steps": "3",
    "cfg_scale": 4.5,
    "cfg_channels": "all",
}


@pytest.fixture(autouse=True)
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return generate_cases.save_all(tmp_path_factory.mktemp("models"))


def config_for(folders: Folders, prompts: Path, **changes: Any) -> SelfGenerateConfig:
    """5 examples in shards of 3 and 2."""
    text = TextConfig(str(folders.text_encoder), LENGTH, dtype="float32", batch_size=1)
    fields = TEXT_PROTOCOL | {"num_samples": COUNT, "batch_size": 4, "shard_size": 3} | changes
    file = prompt_file(prompts, ASKED)
    named = {"model": str(folders.model), "vae": str(folders.vae), "prompt_file": file}
    return SelfGenerateConfig(**(named | {"text": text} | fields))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, folders: Folders) -> Path:
    path = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:2]
        patch.setattr(jax, "local_devices", lambda: devices)
        return self_generate(config_for(folders, path / "p.txt"), path / "t2i", lambda _: None)


def examples_of(out: Path) -> list[dict[str, np.ndarray]]:
    schema = read_schema(out)
    records = latents.open_records(out, schema, schema.split)
    return [latents.decode_record(r, schema, schema.moments_shapes[0]) for r in records]


def test_images_of_generate_with_their_features(
    drawn: Path, folders: Folders, tmp_path: Path
) -> None:
    """Image k of a prompt is image k of that prompt in `generate`, a prompt that is there twice
    counted on; and the stored tokens are what the text encoder gives."""
    asked = generate_cases.config_for(
        folders, tmp_path / "g", prompt_file=prompt_file(tmp_path / "g.txt", ASKED[:2]),
        num_images=3, batch_size=2,
    )  # fmt: skip
    generate(asked, lambda _: None)
    vae = with_params(*load_model_dir(folders.vae))
    encoder = load_text_encoder(folders.text_encoder)
    found = examples_of(drawn)
    assert len(found) == COUNT
    images = ("00000_0", "00001_0", "00000_1", "00000_2", "00001_1")
    for example, name, prompt in zip(found, images, (0, 1, 0, 0, 1), strict=True):
        decoded = np.asarray(vae.decode_scaled(example["moments"]))[0]
        difference = to_uint8(decoded).astype(int) - pixels(tmp_path / "g" / f"{name}.png")
        assert np.abs(difference).max() <= 1
        features_1xLxD, mask_1xL = encoder.features([ASKED[prompt]], LENGTH, 1)
        kept = features_1xLxD[0, mask_1xL[0] != 0]
        np.testing.assert_allclose(example["tokens_prompt"], kept, atol=1e-5)

    schema = read_schema(drawn)
    assert schema.captions == ("prompt",) and schema.buckets == () and schema.classes == ()
    assert schema.text["encoder"] == dataclasses.asdict(text_encoder_identity(folders.text_encoder))
    assert schema.source["prompts"]["count"] == 3
    null_LxD = encoder.features([""], LENGTH, 1)[0][0]
    np.testing.assert_allclose(read_null_caption(drawn, schema), null_LxD, atol=1e-5)


def test_goes_on_where_it_was_stopped(drawn: Path, folders: Folders, tmp_path: Path) -> None:
    """All is drawn but the features of the empty caption and the end are missing."""
    before = kills.contents(drawn)
    for name in ("schema.json", "null_caption.npy"):
        (drawn / name).unlink()
    said: list[str] = []
    config = config_for(folders, tmp_path / "p.txt")
    self_generate(config, drawn, said.append)
    assert "2 shards, 0 to do" in said[0] and kills.contents(drawn) == before
    (tmp_path / "p.txt").write_text(PROMPTS[0])
    with pytest.raises(ValueError, match="another request: prompts.count is 3, asked for is 1"):
        self_generate(dataclasses.replace(config, prompt_file=str(tmp_path / "p.txt")), drawn)


def student_config(drawn: Path, folders: Folders) -> TrainConfig:
    model = PIXART | {"mixer": "linear", "num_heads": 1, "cross_num_heads": 2}
    return TrainConfig(
        total_steps=2,
        batch_size=5,
        model=ModelSpec(name="PixArt", overrides=model),
        data=DataConfig(drawn.name, str(drawn.parent), vae=str(folders.vae)),
        log_every=1,
        checkpoint_every=1,
        distill=DistillConfig(str(folders.model), 1.0),
        inherit=InheritConfig(str(folders.model)),
    )


@pytest.mark.usefixtures("one_device")
def test_training_sees_the_samples_unchanged(drawn: Path, folders: Folders, tmp_path: Path) -> None:
    run = train_job.check(student_config(drawn, folders), tmp_path / "run", lambda text: None)
    batch, found = next(run.data), examples_of(drawn)
    x_start = np.asarray(run.info.start_of(batch, jax.random.key(0)))
    order = []
    for row, x_hxwxL in enumerate(x_start):
        (index,) = [i for i, e in enumerate(found) if (e["moments"][0] == x_hxwxL).all()]
        tokens = found[index]["tokens_prompt"]
        np.testing.assert_array_equal(batch["tokens"][row, : len(tokens)], tokens)
        assert batch["mask"][row].sum() == len(tokens)
        order.append(index)
    assert sorted(order) == list(range(COUNT))


def test_other_size_with_the_vae_that_the_teacher_names(folders: Folders, tmp_path: Path) -> None:
    """One bucket of images that are not the teacher's nominal 16 x 16."""
    model = shutil.copytree(folders.model, tmp_path / "model")
    content = json.loads((model / "config.json").read_text())
    identity = dataclasses.asdict(vae_identity(folders.vae))
    (model / "config.json").write_text(json.dumps(content | {"vae": identity}))
    named = {"model": str(model), "vae": ""}
    config = config_for(folders, tmp_path / "p.txt", size=(8, 24), num_samples=2, **named)
    schema = read_schema(self_generate(config, tmp_path / "wide", lambda _: None))
    assert schema.buckets == ((8, 24),) and schema.latent_shape == (8, 8, 4)
    assert schema.vae == identity
    batch = next(make_train_iterator("wide", tmp_path, "train", 2, 0))
    assert batch["image"].shape == (2, 4, 12, 4) and batch["mask"].shape == (2, LENGTH)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompts": ({"prompt_file": ""}, "draws from captions; give a file with one prompt per"),
    "empty file": ({"prompt_file": "/dev/null"}, "/dev/null holds no prompt"),
    "no encoder": ({"text": TextConfig()}, "give the model folder of its T5 .text.encoder"),
    "another network": ({"text": TextConfig("{vae}")}, "holds an AutoencoderKL; a text encoder"),
    "tokens": ({"text": TextConfig("{t5}", 20)}, "text.max_length is 20, .* takes 30 tokens; set"),
    "size": ({"size": (10, 16)}, r"size is \(10, 16\); height and width must be multiples of 4"),
    "sampler": ({"sampler": "dpm"}, "unknown sampler 'dpm'"),
    "no vae": ({"vae": ""}, "does not record which VAE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_before_anything_happens(folders: Folders, tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    if "text" in changes:
        text: TextConfig = changes["text"]
        encoder = text.encoder.format(vae=folders.vae, t5=folders.text_encoder)
        changes = {"text": dataclasses.replace(text, encoder=encoder)}
    with pytest.raises(ValueError, match=message):
        self_generate(config_for(folders, tmp_path / "p.txt", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_student_trains_on_them(drawn: Path, folders: Folders, tmp_path: Path) -> None:
    workdir = train_job.train(student_config(drawn, folders), tmp_path / "run", lambda text: None)
    lines = read_trace(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["noise_distillation"] > 0 for line in lines)
    _, params = load_model_dir(workdir)
    null_LxD = read_null_caption(drawn, read_schema(drawn))
    np.testing.assert_array_equal(params["y_embedder"]["null_caption"], null_LxD)
