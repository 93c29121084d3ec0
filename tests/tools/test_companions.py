"""What a conversion puts beside the weights: a T5's tokenizer, a denoiser's VAE and encoder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.identity import FLOAT_SHA256
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import model_config
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.sampling.text_features import load_text_encoder
from support.models import text_encoder_identity, vae_identity
from support.text_encoder_cases import TINY_T5, sentencepiece_model, write_text_encoder
from tools.convert_torch_ckpt import main

VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
PIXART = {"hidden_size": 24, "depth": 2, "num_heads": 2, "input_size": 8, "model_max_length": 5}
PIXART |= {"caption_channels": TINY_T5.d_model}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(path: str, family: str, **fields: Any) -> None:
    config = model_config(family, **fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32),
        abstract_params(config),
    )
    save_model_dir(path, config, params, {})


def pipeline() -> Path:
    """A folder as diffusers has it: the encoder, and a folder `tokenizer` next to it."""
    write_text_encoder(Path("t5"))
    export = ["--export", "--src", "t5", "--layout", "transformers"]
    assert main([*export, "--dst", "pipeline/text_encoder"]) == 0
    (Path("t5") / TOKENIZER_FILE).parent.rename("pipeline/tokenizer")
    return Path("pipeline/text_encoder")


def convert(source: Path | str, *arguments: str, dst: str = "m") -> int:
    return main(["--src", str(source), "--dst", dst, *arguments])


def test_the_tokenizer_of_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(pipeline()) == 0
    assert "note: tokenizer: " in capsys.readouterr().out
    assert (Path("m") / TOKENIZER_FILE).read_bytes() == sentencepiece_model()
    features, _ = load_text_encoder("m").features(["a red circle"], 5)
    assert np.all(np.isfinite(features))
    # The folder is replaced with its tokenizer; a file of somebody else is never deleted.
    assert convert("pipeline/text_encoder", "--overwrite") == 0
    (Path("m") / "tokenizer/notes.txt").write_text("precious")
    assert convert("pipeline/text_encoder", "--overwrite") == 2
    assert "tokenizer/ holds more than spiece.model" in capsys.readouterr().err
    assert (Path("m") / "tokenizer/notes.txt").read_text() == "precious"


def test_where_the_tokenizer_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    source = pipeline()
    Path("pipeline/tokenizer").rename("elsewhere")
    assert convert(source, dst="none") == 0
    assert "note: there is no spiece.model beside the source; before" in capsys.readouterr().out
    assert sorted(os.listdir("none")) == ["config.json", "params"]
    for number, given in enumerate(("elsewhere", "elsewhere/spiece.model")):
        assert convert(source, "--tokenizer", given, dst=f"given{number}") == 0
        assert (Path(f"given{number}") / TOKENIZER_FILE).is_file()
    # A folder that has one keeps it when it is converted anew.
    assert convert(source, "--overwrite", dst="given0") == 0
    assert (Path("given0") / TOKENIZER_FILE).is_file()
    Path("elsewhere/spiece.model").rename(source / "spiece.model")
    assert convert(source, dst="beside") == 0
    assert (Path("beside") / TOKENIZER_FILE).is_file()


def test_wrong_tokenizers(capsys: pytest.CaptureFixture[str]) -> None:
    source = pipeline()
    Path("damaged.model").write_text("a web page")
    save("pixart", "PixArt", **PIXART)
    assert (
        main(["--export", "--src", "pixart", "--dst", "p.safetensors", "--layout", "pixart"]) == 0
    )
    before = sorted(os.listdir())
    for arguments, message in (
        ((source, "--tokenizer", "damaged.model"), "damaged.model is no sentencepiece model"),
        ((source, "--tokenizer", "nowhere"), "nowhere is no file and no folder with a spiece"),
        (("p.safetensors", "--tokenizer", "damaged.model"), "--tokenizer belongs to a T5"),
    ):
        capsys.readouterr()
        assert convert(*arguments) == 2
        assert message in capsys.readouterr().err
        assert sorted(os.listdir()) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_recorded_sum(dtype: str) -> None:
    """Made while the numbers pass by, it is that of the parameters, before any rounding."""
    assert convert(pipeline(), "--dtype", dtype) == 0
    recorded = json.loads(Path("m/config.json").read_text())["provenance"][FLOAT_SHA256]
    assert recorded == ModelFolder("t5").float_sha256 == text_encoder_identity("m").sha256


def test_recorded_companions() -> None:
    save("pixart", "PixArt", **PIXART)
    save("vae", "SDXL-VAE", **VAE)
    write_text_encoder(Path("t5"))
    assert (
        main(["--export", "--src", "pixart", "--dst", "p.safetensors", "--layout", "pixart"]) == 0
    )
    assert convert("p.safetensors", "--vae", "vae", "--text_encoder", "t5") == 0
    assert ModelFolder("m").vae == vae_identity("vae")
    assert ModelFolder("m").text_encoder == text_encoder_identity("t5")
    assert convert("p.safetensors", dst="plain") == 0
    assert (ModelFolder("plain").vae, ModelFolder("plain").text_encoder) == (None, None)


def test_companions_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    save("pixart", "PixArt", **(PIXART | {"in_channels": 6}))
    save("dit", "DiT", hidden_size=24, depth=1, num_heads=2, input_size=8)
    save("vae", "SDXL-VAE", **VAE)
    write_text_encoder(Path("t5"), dataclasses.replace(TINY_T5, d_model=20))
    for name, layout in (("pixart", "pixart"), ("dit", "dit"), ("vae", "diffusers")):
        dst = "vae_torch" if name == "vae" else f"{name}.safetensors"
        assert main(["--export", "--src", name, "--dst", dst, "--layout", layout]) == 0
    before = sorted(os.listdir())
    for arguments, message in (
        (
            ("pixart.safetensors", "--vae", "vae"),
            "vae has latents of 4 channels, the model takes 6",
        ),
        (
            ("pixart.safetensors", "--vae", "t5"),
            r"t5 holds a T5; a VAE \(AutoencoderKL\) is needed",
        ),
        (("pixart.safetensors", "--text_encoder", "t5"), "width 20, the model takes 16"),
        (("pixart.safetensors", "--text_encoder", "vae"), "vae holds an AutoencoderKL; a text"),
        (("dit.safetensors", "--text_encoder", "t5"), "--text_encoder belongs to a PixArt"),
        (("vae_torch", "--vae", "vae"), "--vae belongs to a denoiser such as a DiT"),
    ):
        capsys.readouterr()
        assert convert(*arguments) == 2
        assert message.replace("\\", "") in capsys.readouterr().err
        assert sorted(os.listdir()) == before
    export = ["--export", "--src", "dit", "--dst", "x.pt", "--layout", "dit", "--vae", "vae"]
    assert main(export) == 2
    assert "--vae belong(s) to import" in capsys.readouterr().err
