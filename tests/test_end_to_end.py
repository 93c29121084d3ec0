"""The whole walk of a user, as commands: a folder of photographs and two PyTorch checkpoints go in,
a report of FID and its relatives comes out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from support import tiny_runs
from support.golden_cases import COPIES
from support.inception_cases import TINY, tiny_weights

RESOLUTION = 16  # the tiny VAE makes latents of 8 x 8
IMAGES_PER_CLASS = 20
CLASSES = {"disc": (200, 60, 40), "square": (40, 160, 220), "stripes": (230, 200, 60)}
STEPS, SAMPLES = 20, 64

CONFIG = """
from configs import common

def get_config():
    config = common.base()
    config.total_steps, config.batch_size = {steps}, 16
    config.log_every, config.checkpoint_every = 5, 10
    config.data.name, config.data.data_dir = "latents", "{root}"
    config.data.vae = "{root}/models/vae"
    config.data.flip = True
    config.model.name = "LiT"
    config.model.overrides = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=32,
                                  depth=2, num_heads=2, num_classes=3)
    config.optimizer.learning_rate = 1e-3
    config.ema.warmup = True
    return config
"""


def convert(*arguments: str) -> None:
    """`python tools/convert_torch_ckpt.py ARGUMENTS`."""
    command = [sys.executable, "tools/convert_torch_ckpt.py", *arguments]
    done = subprocess.run(
        command, cwd=tiny_runs.ROOT, env=tiny_runs.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def draw_photographs(folder: Path) -> None:
    """Shapes of one colour per class on a noisy ground, of many sizes, PNG and JPEG."""
    random = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for index in range(IMAGES_PER_CLASS):
            height, width = random.integers(20, 48, 2)
            pixels_HxWx3 = random.integers(0, 90, (height, width, 3), dtype=np.uint8)
            y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
            inside = {
                "disc": y**2 + x**2 < (min(height, width) / 3) ** 2,
                "square": np.maximum(abs(y), abs(x)) < min(height, width) / 3,
                "stripes": (x // 4) % 2 == 0,
            }
            pixels_HxWx3[inside[name]] = colour
            suffix = "jpg" if index % 3 == 0 else "png"
            Image.fromarray(pixels_HxWx3).save(folder / name / f"{index:02d}.{suffix}")
    (folder / "disc" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All commands, one after the other."""
    root = tmp_path_factory.mktemp("walk")
    draw_photographs(root / "photographs")
    save_file(tiny_weights(), root / "inception.safetensors")
    (root / "config.py").write_text(CONFIG.format(steps=STEPS, root=root))

    convert("--src", str(COPIES / "vae_sd"), "--dst", f"{root}/models/vae")
    convert(
        *("--src", f"{root}/inception.safetensors", "--dst", f"{root}/models/inception"),
        *("--model", "Inception", "--set", f"width_divisor={TINY.width_divisor}"),
        f"num_logits={TINY.num_logits}",
    )
    tiny_runs.run(
        [
            *("encode", "--config=configs/encode_folder.py:classes", f"--out={root}/latents"),
            f"--config.source.path={root}/photographs",
            f"--config.vae={root}/models/vae",
            *(f"--config.resolution={RESOLUTION}", "--config.shard_size=25"),
            "--config.max_skipped_fraction=0.05",
        ]
    )
    tiny_runs.run(["train", f"--config={root}/config.py", f"--workdir={root}/lit"])
    tiny_runs.run(
        [
            *("sample", f"--model={root}/lit", f"--vae={root}/models/vae", f"--out={root}/samples"),
            *(f"--num_samples={SAMPLES}", "--steps=5", "--cfg_scale=1.5", "--shard_size=24"),
        ]
    )
    # A reference is measured as it is or not at all: evaluate refuses the broken file by its name.
    (root / "photographs" / "disc" / "broken.jpg").unlink()
    tiny_runs.run(
        [
            *("evaluate", f"--samples={root}/samples", f"--reference={root}/photographs"),
            *(f"--resolution={RESOLUTION}", f"--inception={root}/models/inception"),
            *(f"--out={root}/metrics.json", f"--cache_dir={root}/cache"),
        ]
    )
    return root


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_broken_photograph_is_named(walk: Path) -> None:
    schema = read(walk / "latents" / "schema.json")
    assert schema["count"] == len(CLASSES) * IMAGES_PER_CLASS and schema["skipped"] == 1
    assert schema["classes"] == sorted(CLASSES)
    assert "disc/broken.jpg" in (walk / "latents" / "skipped.json").read_text()


def test_samples_are_images(walk: Path) -> None:
    with np.load(walk / "samples" / "samples.npz") as drawn:
        assert drawn["arr_0"].shape == (SAMPLES, RESOLUTION, RESOLUTION, 3)
        assert drawn["arr_0"].dtype == np.uint8 and drawn["arr_0"].std() > 1
        np.testing.assert_array_equal(np.bincount(drawn["labels"]), [22, 21, 21])


def test_the_report_says_what_was_measured(walk: Path) -> None:
    text = (walk / "metrics.json").read_text()
    record = read(walk / "samples" / "sample.json")
    schema = read(walk / "latents" / "schema.json")
    assert record["vae"]["sha256"] == schema["vae"]["sha256"]
    for told in (record["weights_sha256"], record["vae"]["sha256"], '"ddpm"', "1.5", str(SAMPLES)):
        assert told in text, f"metrics.json does not say {told}"
