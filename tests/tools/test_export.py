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
from lit_jax.checkpoints.pairing import layout_named
from lit_jax.models.family import architecture
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import model_config
from support.export_cases import (
    COMPRESSED,
    DIT,
    PIXART,
    T5,
    VAE,
    told_flags,
    written_model,
)
from support.models import load_model_dir
from tools import export_checkpoint
from tools.convert_torch_ckpt import main
from tools.export_checkpoint import needed_settings
from tools.settings import parse_settings

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
