"""The way back: exported files import to the same parameters, and PyTorch libraries load them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.folder import load_model_dir, save_model_dir
from lit_jax.checkpoints.pairing import layout_named
from lit_jax.models.family import architecture
from lit_jax.models.functional import Params, abstract_params, apply_fn
from lit_jax.models.registry import model_config
from support.live_parity import live_seed
from tools import export_checkpoint
from tools.convert_torch_ckpt import main
from tools.export_checkpoint import needed_settings
from tools.settings import parse_settings

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


NOTE = "note: a torch file carries no architecture; import it with "


def told_flags(printed: str) -> list[str]:
    """The flags that an export tells its reader to import the file with."""
    notes = [line for line in printed.splitlines() if line.startswith(NOTE)]
    assert len(notes) <= 1
    return notes[0].removeprefix(NOTE).split(" ") if notes else []


@pytest.mark.parametrize("case", CASES)
def test_export_then_import_is_the_identity(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, and without a flag where the architecture travels with the file."""
    family, fields, layout, dst = CASES[case]
    if dst.endswith((".pt", ".pth")):
        pytest.importorskip("torch")
    params = written_model(family, fields)
    assert main(["--export", "--src", "m", "--dst", dst, "--layout", layout]) == 0
    # A torch file has no metadata; the export says what to pass.
    flags = told_flags(capsys.readouterr().out)
    assert bool(flags) == (dst.endswith((".pt", ".pth")) and family in ("DiT", "PixArt"))
    assert main(["--src", dst, "--dst", "n", *flags]) == 0
    first, second = load_model_dir("m"), load_model_dir("n")
    assert architecture(second[0]) == architecture(first[0])
    jax.tree.map(np.testing.assert_array_equal, params, second[1])


COMPRESSED_BY_MEANS = {"kv_compress_config": {"sampling": "ave", "kv_compress_layer": [1]}}

# Family, fields, layout -> all that a torch file does not tell.
UNTOLD: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "heads": ("DiT", DIT, "dit", ["num_heads=2"]),
    "named size": ("DiT", {"hidden_size": 384, "depth": 12, "num_heads": 6}, "dit", []),
    "no null row": (
        "DiT",
        DIT | {"class_dropout_prob": 0},
        "dit",
        ["num_heads=2", "class_dropout_prob=0.0"],
    ),
    "another dropout": (
        "DiT",
        DIT | {"class_dropout_prob": 0.2},
        "dit",
        ["num_heads=2", "class_dropout_prob=0.2"],
    ),
    "not square": ("DiT", DIT | {"input_size": (8, 4)}, "dit", ["input_size=8x4", "num_heads=2"]),
    "kernel function": ("LiT", DIT | {"kernel_fn": "gelu"}, "lit", ["kernel_fn=gelu"]),
    "no convolution": ("LiT", DIT | {"kernel_size": None}, "lit", ["num_heads=2"]),
    "compression without filters": (
        "PixArt",
        PIXART | COMPRESSED_BY_MEANS,
        "pixart",
        [
            "num_heads=2",
            "kv_compress_config.sampling=ave",
            "kv_compress_config.kv_compress_layer=1,",
        ],
    ),
    "heads of the cross-attention": (
        "PixArt",
        PIXART | {"mixer": "linear", "cross_num_heads": 6},
        "lit",
        ["cross_num_heads=6"],
    ),
    "preprocessing": (
        "Inception",
        {"width_divisor": 16, "preprocessing": "pytorch_fid"},
        "pytorch-fid",
        ["preprocessing=pytorch_fid"],
    ),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_settings_that_a_torch_file_needs(case: str) -> None:
    """They bring the configuration back, and without any one of them it is another or none."""
    family, fields, name, expected = UNTOLD[case]
    config = model_config(family, **fields)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(config))
    layout = layout_named(config, name)
    state = export_params(params, config, layout)
    settings = [f"{key}={text}" for key, text in needed_settings(state, config, layout).items()]
    assert settings == expected

    def read_with(words: list[str]) -> Any:
        return detect_config(state, config.family, parse_settings([words]))

    assert architecture(read_with(settings)) == architecture(config)
    for left_out in settings:
        try:
            other = read_with([word for word in settings if word != left_out])
        except ValueError:
            continue
        assert architecture(other) != architecture(config), left_out


@pytest.mark.parametrize("case", ["no null row", "compression without filters", "preprocessing"])
def test_the_note_of_a_torch_file_imports_it(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    family, fields, layout, _ = UNTOLD[case]
    params = written_model(family, fields)
    assert main(["--export", "--src", "m", "--dst", "x.pt", "--layout", layout]) == 0
    flags = told_flags(capsys.readouterr().out)
    assert flags[:3] == ["--model", family, "--set"]
    assert main(["--src", "x.pt", "--dst", "n", *flags]) == 0
    config, back = load_model_dir("n")
    assert architecture(config) == architecture(load_model_dir("m")[0])
    jax.tree.map(np.testing.assert_array_equal, params, back)
    assert main(["--export", "--src", "m", "--dst", "x.safetensors", "--layout", layout]) == 0
    assert told_flags(capsys.readouterr().out) == []


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


def test_a_failed_export_leaves_the_old_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two files are exchanged together: never the weights of one model with the config of
    another."""
    written_model("T5", T5)
    export = ["--export", "--src", "m", "--dst", "x", "--layout", "transformers"]
    assert main(export) == 0
    before = {path.name: path.read_bytes() for path in Path("x").iterdir()}
    names = set(os.listdir())
    written_model_again("T5", T5 | {"d_ff": 12})

    def full(path: Path, content: object, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(export_checkpoint, "write_json", full)
        assert main([*export, "--overwrite"]) == 2
        last = capsys.readouterr().err
        assert last == "error: x cannot be written: No space left on device\n"
        deep = ["--export", "--src", "m", "--dst", "a/b/x", "--layout", "transformers"]
        assert main(deep) == 2
    assert {path.name: path.read_bytes() for path in Path("x").iterdir()} == before
    assert set(os.listdir()) == names
    assert main([*export, "--overwrite"]) == 0
    assert json.loads(Path("x/config.json").read_text())["d_ff"] == 12
    assert set(os.listdir()) == names


def written_model_again(family: str, fields: dict[str, Any]) -> None:
    shutil.rmtree("m")
    written_model(family, fields)


def test_flags_and_destinations_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    written_model("DiT", DIT)
    Path("dir.pt").mkdir()
    export = ["--export", "--src", "m", "--layout", "dit", "--overwrite", "--dst"]
    for dst in ("dir.pt", "dir.pt/"):
        assert main([*export, dst]) == 2
        assert capsys.readouterr().err == (
            "error: --dst dir.pt is a folder; layout 'dit' is one file: name that file\n"
        )
    for dtype in ("bfloat16", "float32"):
        assert main([*export, "x.safetensors", "--dtype", dtype]) == 2
        assert "--dtype belongs to import" in capsys.readouterr().err
    assert not Path("x.safetensors").exists()


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
