"""The way back: exported files import to the same parameters, and PyTorch libraries load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from live_parity import live_seed

from lit_jax.config import architecture
from lit_jax.models.zoo import Params, abstract_params, apply_fn, model_config
from lit_jax.weights.folder import load_model_dir, save_model_dir
from tools.convert_torch_ckpt import main

DIT = {"hidden_size": 16, "depth": 2, "num_heads": 2, "input_size": 8, "num_classes": 1000}
PIXART = {"hidden_size": 24, "depth": 3, "num_heads": 2, "input_size": 8, "caption_channels": 12}
PIXART |= {"model_max_length": 5, "pe_interpolation": 0.5}
COMPRESSED = {"kv_compress_config": {"kv_compress_layer": [1, 2]}, "qk_norm": True}
VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}

# Name -> (family, fields, layout, where it is written).
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "dit": ("DiT", DIT, "dit", "x.pt"),
    "dit without labels": ("DiT", DIT | {"num_classes": 0}, "dit", "x.safetensors"),
    "dit diffusers": ("DiT", DIT, "diffusers", "x"),
    "lit": ("LiT", DIT, "lit", "x.safetensors"),
    "pixart": ("PixArt", PIXART, "pixart", "x.pth"),
    "pixart compressed": ("PixArt", PIXART | COMPRESSED, "pixart", "x.safetensors"),
    "pixart micro": ("PixArt", PIXART | {"micro_condition": True}, "pixart", "x.safetensors"),
    "pixart lit": ("PixArt", PIXART | {"mixer": "linear"}, "lit", "x.safetensors"),
    "pixart diffusers": ("PixArt", PIXART | {"model_max_length": None}, "diffusers", "x"),
    "vae": ("SDXL-VAE", VAE, "diffusers", "x"),
    "t5": ("T5", T5, "transformers", "x"),
    "inception": ("Inception", {"width_divisor": 16}, "pytorch-fid", "x.pth"),
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written_model(family: str, fields: dict[str, Any], seed: int = 0) -> Params:
    """A model folder `m` with random parameters."""
    config = model_config(family, **fields)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32),
        abstract_params(config),
    )
    save_model_dir("m", config, params, {})
    return params


@pytest.mark.parametrize("case", CASES)
def test_export_then_import_is_the_identity(case: str) -> None:
    """Bit for bit, and without a flag: the architecture travels with the file."""
    family, fields, layout, dst = CASES[case]
    if dst.endswith((".pt", ".pth")):
        pytest.importorskip("torch")
    params = written_model(family, fields)
    assert main(["--export", "--src", "m", "--dst", dst, "--layout", layout]) == 0
    flags = []
    if dst.endswith((".pt", ".pth")) and family in ("DiT", "PixArt"):
        flags = ["--set", f"num_heads={fields['num_heads']}"]  # a torch file has no metadata
    assert main(["--src", dst, "--dst", "n", *flags]) == 0
    first, second = load_model_dir("m"), load_model_dir("n")
    assert architecture(second[0]) == architecture(first[0])
    jax.tree.map(np.testing.assert_array_equal, params, second[1])


def test_a_layout_without_place_for_the_null_caption(capsys: pytest.CaptureFixture[str]) -> None:
    params = written_model("PixArt", PIXART)
    assert main(["--export", "--src", "m", "--dst", "x", "--layout", "diffusers"]) == 0
    note = "note: layout 'diffusers' has no place for y_embedder/null_caption; not written\n"
    assert note in capsys.readouterr().out
    assert main(["--src", "x", "--dst", "n"]) == 0
    config, back = load_model_dir("n")
    assert config.model_max_length is None
    del params["y_embedder"]["null_caption"]
    jax.tree.map(np.testing.assert_array_equal, params, back)


@pytest.mark.parametrize(
    ("family", "fields", "layout", "message"),
    [
        ("LiT", DIT, "diffusers", "cannot hold a LiT model with the 'linear' mixer"),
        ("DiT", DIT | {"mlp_ratio": 2.0}, "diffusers", "layout 'diffusers' cannot hold"),
        ("DiT", DIT | {"input_size": (8, 4)}, "diffusers", "layout 'diffusers' cannot hold"),
        ("DiT", DIT | {"num_classes": 0}, "diffusers", "layout 'diffusers' cannot hold"),
        ("PixArt", PIXART | COMPRESSED, "diffusers", "use layout 'pixart'"),
        ("T5", T5, "dit", "layout 'dit' cannot hold a T5 model; use layout 'transformers'"),
    ],
)
def test_layouts_that_cannot_hold_a_model(
    family: str, fields: dict, layout: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written_model(family, fields)
    dst = "x" if layout == "diffusers" else "x.safetensors"
    assert main(["--export", "--src", "m", "--dst", dst, "--layout", layout]) == 2
    assert message in capsys.readouterr().err and not Path(dst).exists()


def test_folders_are_not_overwritten_by_accident(capsys: pytest.CaptureFixture[str]) -> None:
    written_model("T5", T5)
    export = ["--export", "--src", "m", "--dst", "x", "--layout", "transformers"]
    assert main(export) == 0
    assert main(export) == 2 and "x exists; pass --overwrite" in capsys.readouterr().err
    assert main([*export, "--overwrite"]) == 0
    Path("x/notes.txt").write_text("mine")
    assert main([*export, "--overwrite"]) == 2
    assert "x exists and is not an exported folder" in capsys.readouterr().err
    assert Path("x/notes.txt").read_text() == "mine"
    file = ["--export", "--src", "m", "--dst", "x.safetensors", "--layout", "transformers"]
    assert main(file) == 2
    assert "x.safetensors is a file; layout 'transformers' is a folder" in capsys.readouterr().err


def exported(family: str, fields: dict[str, Any], layout: str, dst: str) -> tuple[Any, Params]:
    params = written_model(family, fields, live_seed())
    assert main(["--export", "--src", "m", "--dst", dst, "--layout", layout]) == 0
    Path("m").rename(f"m_{dst}")
    return model_config(family, **fields), params


def test_a_dit_pipeline_of_diffusers_loads_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs, and its network is the exported one up to the timestep embedding that the note
    tells of: at t=0, where both embeddings are equal, the outputs agree."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config, params = exported("DiT", DIT, "diffusers", "transformer")
    printed = capsys.readouterr().out
    assert (
        "note: diffusers computes the timestep embedding of DiT with other frequencies" in printed
    )
    assert "relative on these weights" in printed
    exported("SD-VAE", VAE, "diffusers", "vae")
    transformer = diffusers.DiTTransformer2DModel.from_pretrained("transformer")
    pipeline = diffusers.DiTPipeline(
        transformer, diffusers.AutoencoderKL.from_pretrained("vae"), diffusers.DDIMScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 2], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    labels = np.array([3, 1000])
    with torch.inference_mode():
        theirs = transformer(
            torch.from_numpy(x), torch.zeros(2, dtype=torch.long), torch.from_numpy(labels)
        ).sample.numpy()
    ours = jax.jit(apply_fn(config))(params, x.transpose(0, 2, 3, 1), np.zeros(2), labels)
    difference = np.abs(np.asarray(ours).transpose(0, 3, 1, 2) - theirs).max()
    assert difference < 2e-5 * np.abs(theirs).max()


def test_a_pixart_pipeline_of_diffusers_loads_the_folders() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    exported("PixArt", PIXART | {"caption_channels": 16}, "diffusers", "transformer")
    exported("SDXL-VAE", VAE, "diffusers", "vae")
    exported("T5", T5, "transformers", "text_encoder")
    encoder = transformers.T5EncoderModel.from_pretrained("text_encoder")
    tokens = torch.tensor([[3, 4, 1], [5, 1, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.inference_mode():
        features = encoder(tokens, mask).last_hidden_state
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKL.from_pretrained("vae"),
        transformer=diffusers.PixArtTransformer2DModel.from_pretrained("transformer"),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    assert json.loads(Path("vae/config.json").read_text())["scaling_factor"] == 0.13025
    images = pipeline(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=features[:1],
        prompt_attention_mask=mask[:1],
        negative_prompt_embeds=features[1:],
        negative_prompt_attention_mask=mask[1:],
        num_inference_steps=2,
        height=16,
        width=16,
        use_resolution_binning=False,
        output_type="np",
    ).images
    assert images.shape == (1, 16, 16, 3) and np.isfinite(images).all()
