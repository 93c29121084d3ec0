"""Which file of a folder holds the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_jax.weights.files import only_weight_file

SUFFIXES = (".safetensors", ".pt")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_the_only_weight_file(tmp_path: Path) -> None:
    fill(tmp_path, "README.md", "config.json", ".cache.pt", "DiT-XL-2-256x256.pt")
    assert only_weight_file(tmp_path, SUFFIXES) == tmp_path / "DiT-XL-2-256x256.pt"


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        ((), "nothing"),
        (("config.json", "params", ".cache.pt"), "config.json, params"),
        (("b.pt", "a.safetensors", "README.md"), "a.safetensors, b.pt"),
        (("model-00001-of-00002.safetensors",), "model-00001-of-00002.safetensors"),
        (("model_index.json", "vae.safetensors"), "vae.safetensors"),
    ],
    ids=str,
)
def test_nothing_is_guessed(names: tuple[str, ...], listed: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one weight file") as error:
        only_weight_file(fill(tmp_path, *names), SUFFIXES)
    assert f"but {listed}; name a file (sharded checkpoints and diffusers" in str(error.value)
    assert "\n" not in str(error.value)
