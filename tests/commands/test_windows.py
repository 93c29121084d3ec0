"""CLEAR without training: windows in softmax models, by flags of sample and generate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.commands.evaluate.inputs import open_samples
from lit_jax.commands.generate import checks as generate_checks
from lit_jax.commands.generate import memory as generate_memory
from lit_jax.commands.generate.job import generate
from lit_jax.config.generate import GenerateConfig
from lit_jax.config.protocol import CAPTIONS, Protocol
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from support import generate_cases, tiny_runs
from support.golden_cases import relative_error
from support.sampling import sample

pytestmark = pytest.mark.usefixtures("compiled_once")

SHORT = Protocol(steps="2", seed=3)
POOLED: dict[str, Any] = {"window_size": 9, "down_factor": 2}


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny softmax DiT on 4 x 4 tokens."""
    path = tmp_path_factory.mktemp("models") / "dit"
    return tiny_runs.save_model(path, in_channels=4, patch_size=2, depth=1)


def latents(model: Path, out: Path, **windows: Any) -> np.ndarray:
    sample(model, out, 8, SHORT, log=silent, save_latents=True, **windows)
    with np.load(out / "latents.npz") as arrays:
        kept: np.ndarray = arrays["arr_0"]
    return kept


def test_sample_with_windows(model: Path, tmp_path: Path) -> None:
    """A window over the grid changes nothing, pooled tokens do."""
    plain = latents(model, tmp_path / "plain")
    whole = latents(model, tmp_path / "whole", window_size=9)
    pooled = latents(model, tmp_path / "pooled", **POOLED)
    assert relative_error(whole, plain) < 1e-5
    assert relative_error(pooled, plain) > 1e-4

    records = [json.loads((tmp_path / n / "sample.json").read_text()) for n in ("plain", "pooled")]
    assert [record["windows"] for record in records] == [
        None,
        POOLED,
    ]
    # The model is the same.
    assert len({record["weights_sha256"] for record in records}) == 1

    said: list[str] = []
    sample(model, tmp_path / "pooled", 8, SHORT, log=said.append, save_latents=True, **POOLED)
    assert len(said) == 1 and said[0].startswith("nothing to do")
    with pytest.raises(ValueError, match="another request: architecture.window_size is 9, asked"):
        latents(model, tmp_path / "pooled", **POOLED | {"window_size": 3})
    with pytest.raises(ValueError, match="another request: .*architecture.mixer is window, asked"):
        latents(model, tmp_path / "pooled")


def test_an_evaluation_knows_of_the_windows(tmp_path: Path) -> None:
    """Scores of samples with windows are not those of the model."""
    model = tiny_runs.save_model(tmp_path / "model", depth=1, input_size=8, patch_size=4)
    sample(model, tmp_path / "s", 2, SHORT, log=silent, window_size=1)
    samples = open_samples(tmp_path / "s")
    assert samples.sampling["windows"] == {"window_size": 1, "down_factor": None}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "factor alone": ({"down_factor": 2}, "--down_factor 2 pools .*; give their --window_size"),
    "negative": ({"window_size": -3}, "window_size is -3"),
    "factor": ({"window_size": 3, "down_factor": 3}, "grid 4x4 does not divide .* down_factor 3"),
    "one": ({"window_size": 3, "down_factor": 1}, "down_factor is 1"),
    "linear": ({"window_size": 3, "model": "lit"}, "--window_size 3 .* has the mixer 'linear'"),
    "window": ({"window_size": 3, "model": "clear"}, "has the mixer 'window'; leave it out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sample_refuses(model: Path, tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    places = {
        "lit": lambda: tiny_runs.save_model(tmp_path / "lit", "LiT", in_channels=4, depth=1),
        "clear": lambda: tiny_runs.save_model(tmp_path / "c", "CLEAR", in_channels=4, depth=1),
    }
    given = dict(changes)
    source = places[given.pop("model")]() if "model" in given else model
    with pytest.raises(ValueError, match=message):
        latents(source, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> generate_cases.Folders:
    """Networks of text to images; the denoiser has 4 x 4 tokens at its nominal size."""
    return generate_cases.save_all(tmp_path_factory.mktemp("folders"), depth=1, qk_norm=True)


def request(folders: generate_cases.Folders, out: Path, **changes: Any) -> GenerateConfig:
    """An image in two steps without guidance."""
    asked = folders.names() | {"out": str(out), "prompt": generate_cases.PROMPTS[0]} | changes
    protocol = dataclasses.replace(CAPTIONS, steps="2", cfg_scale=1.0)
    return GenerateConfig(**asked, dtype="float32", protocol=protocol)


def test_generate_with_windows(folders: generate_cases.Folders, tmp_path: Path) -> None:
    drawn = {}
    for name, windows in (("plain", {}), ("small", {"window_size": 2})):
        said: list[str] = []
        out = tmp_path / f"{name}.png"
        config = request(folders, out, **windows)
        drawn[name] = generate_cases.pixels(generate(config, said.append))
        noted = any("distance below" in line for line in said)
        assert noted == bool(windows)
    assert np.abs(drawn["small"] - drawn["plain"]).max() > 2
    changed = request(folders, tmp_path / "small.png")
    with pytest.raises(ValueError, match="architecture.mixer"):
        generate(changed, silent)


def test_generate_refuses(folders: generate_cases.Folders, tmp_path: Path) -> None:
    """The grid is that of the images asked for; compressed keys leave no window."""
    out = tmp_path / "a.png"
    windows = {"window_size": 2, "down_factor": 2}
    odd = request(folders, out, size=(48, 32), **windows | {"down_factor": 3})
    with pytest.raises(ValueError, match="token grid .* does not divide .* down_factor 3"):
        generate_checks.check(odd)
    compressed = KVCompressConfig("ave", 2, (0,))
    denoiser = generate_cases.save_pixart(tmp_path / "p", kv_compress_config=compressed)
    config = request(folders, out, model=str(denoiser), **windows)
    with pytest.raises(ValueError, match="compresses them in 1 layers; leave it out"):
        generate_checks.check(config)


def test_memory_of_windows_is_linear() -> None:
    def needed(mixer: str, side: int) -> int:
        config = PixArtConfig(mixer=mixer, window_size=8, hidden_size=48, num_heads=4, depth=1)
        return generate_memory.denoiser_activations(config, (side, side), 1)

    assert needed("window", 512) == pytest.approx(4 * needed("window", 256), rel=0.15)
    assert needed("softmax", 512) > 15 * needed("softmax", 256)
    assert needed("window", 256) < needed("softmax", 256)
