"""The text-to-image demo as a visitor runs it, shortened; the models it ships; its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from demo.t2i import detector, models, prompts, report, shapes, train_text_encoder
from lit_jax.checkpoints.model_folder import load_model
from lit_jax.data.tokenizer import Tokenizer
from lit_jax.models.autoencoder.model import AutoencoderKL
from lit_jax.training.metrics import TRACE

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["teacher", "lit_distilled", "lit_inherited", "lit_scratch"]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    # One device, and code that compiles fast: this test is about the walk, not the numbers.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "demo/t2i_demo.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a demo that has been run."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["--out", str(folder / "out"), "--models", str(folder / "models")]
    arguments += ["--steps", "25", "--images", "200", "--per_tag", "2"]
    done = run_demo(*arguments)
    assert done.returncode == 0, done.stderr
    assert "whole demo:" in done.stdout
    return arguments


def test_report_has_the_promised_rows(walk: list[str]) -> None:
    out = Path(walk[1])
    content = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in content["rows"]] == NAMES
    for row in content["rows"]:
        scores = [row[tag] for tag in prompts.TAGS]
        assert row["overall"] == pytest.approx(np.mean(scores)) and 0 <= min(scores) <= 1
        assert row["params"] > 0 and row["attention_macs"] > 0 and row["train_seconds"] > 0
    by_name = {row["name"]: row for row in content["rows"]}
    assert by_name["teacher"]["steps"] > 25 == by_name["lit_distilled"]["steps"]
    # The shipped teacher is trained; 25 steps from scratch are not.
    assert by_name["teacher"]["overall"] > 0.5 > by_name["lit_scratch"]["overall"] + 0.3
    assert all(name in (out / "report.md").read_text() for name in NAMES)
    assert content["protocol"]["images"] == 4 * content["protocol"]["prompts"] == 4 * 12
    for name in ("samples.png", "losses.png"):
        with Image.open(out / name) as image:
            assert image.width > 600
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_what_is_done_is_not_done_again(walk: list[str]) -> None:
    out = Path(walk[1])
    before = (out / "report.json").read_bytes()
    trained = (out / "lit_scratch" / TRACE).stat().st_mtime_ns
    done = run_demo(*walk)
    assert done.returncode == 0, done.stderr
    assert (out / "report.json").read_bytes() == before
    assert (out / "lit_scratch" / TRACE).stat().st_mtime_ns == trained


def test_other_images_do_not_pass_for_these(walk: list[str]) -> None:
    done = run_demo(*walk, "--images", "20")
    assert done.returncode != 0
    assert "holds 200 images, not 20" in done.stderr


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderKL:
    loaded: AutoencoderKL = load_model(models.prepare("vae", tmp_path_factory.mktemp("models")))
    return loaded


def test_shapes_survive_the_shipped_vae(vae: AutoencoderKL) -> None:
    examples = [shapes.example(9, index) for index in range(40)]
    drawn = np.stack([shapes.render(example.things) for example in examples])
    decoded = np.asarray(vae(jnp.asarray(drawn, jnp.float32) / 127.5 - 1))
    images = np.clip(np.round((decoded + 1) * 127.5), 0, 255).astype(np.uint8)
    for example, image in zip(examples, images, strict=True):
        found = sorted((thing.shape, thing.colour) for thing in detector.detect(image))
        assert found == sorted((thing.shape, thing.colour) for thing in example.things)


def test_a_folder_of_another_file_is_not_taken(tmp_path: Path) -> None:
    target = models.prepare("text_encoder", tmp_path)
    assert models.prepare("text_encoder", tmp_path) == target
    config = json.loads((target / "config.json").read_text())
    config["provenance"]["sha256"] = "0" * 64
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="made from another model.safetensors"):
        models.prepare("text_encoder", tmp_path)


def test_every_word_of_the_captions_and_prompts_is_one_token() -> None:
    pieces = models.SHIPPED["text_encoder"].parent / "spiece.model"
    tokenizer = Tokenizer(pieces, train_text_encoder.VOCABULARY)
    texts = [prompt["prompt"] for prompt in prompts.prompts(1000)]
    texts += [shapes.example(9, index).long for index in range(100)]
    for text in texts:
        assert tokenizer.length(text) == len(text.split()) + 1 <= train_text_encoder.MAX_LENGTH


@pytest.mark.parametrize(
    "caption, first, last",
    [
        (
            "a red circle to the left of a blue square on a light background",
            {"colour": 1, "shape": 0, "number": 0, "place": 1, "total": 1},
            {"colour": 3, "shape": 1, "number": 0, "place": 2, "total": 1},
        ),
        (
            "a photo of three crosses",
            {"colour": 0, "shape": 3, "number": 2, "place": 0, "total": 2},
            {"colour": 0, "shape": 3, "number": 2, "place": 0, "total": 2},
        ),
    ],
)
def test_what_the_text_encoder_is_asked(
    caption: str, first: dict[str, int], last: dict[str, int]
) -> None:
    told = train_text_encoder.answers(caption)
    assert len(told) == len(caption.split())
    assert told[0] == first and told[-1] == last


def test_the_table_names_every_score() -> None:
    shares = dict.fromkeys(prompts.TAGS, 0.5)
    row = report.Row("a", 0.5, **shares, steps=10, params=2, attention_macs=3, train_seconds=61)
    table = report.table([row])
    assert len(table) == 3 and table[2].count("50.0%") == 7 and "1 min 01 s" in table[2]
    assert len({line.count("|") for line in table}) == 1
