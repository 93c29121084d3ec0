"""The converter's command line: what it reads, writes, prints, and refuses."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import lit_jax
from lit_jax.checkpoints.convert import Import
from support.golden_cases import COPIES, load_arrays, load_state_dict, nhwc, relative_error
from tools.convert_torch_ckpt import main
from tools.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]
LIT = str(COPIES / "lit_dit_p2.safetensors")
DIT = str(COPIES / "dit_p8_nosigma_nodrop.safetensors")
DIT_FLAGS = ["--model", "DiT", "--set", "num_heads=6", "class_dropout_prob=0"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """stderr of a run that must end with exit code 2."""
    before = set(os.listdir())
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    assert set(os.listdir()) == before, "something was written"
    return captured.err


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_import_prints_a_summary_and_records_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--src", DIT, "--dst", "m", *DIT_FLAGS]) == 0
    printed = capsys.readouterr().out
    content = json.loads(Path("m/config.json").read_text())
    provenance = content["provenance"]
    assert "31 keys used" in printed
    assert "110,272 parameters" in printed
    assert "dropped pos_embed: analytic" in printed
    assert provenance["sha256"] in printed and len(provenance["sha256"]) == 64
    assert provenance["source"] == Path(DIT).name and provenance["layout"] == "dit"
    assert provenance["weights"] == "model" and set(provenance["dropped"]) == {"pos_embed"}
    assert content["model"]["num_heads"] == 6 and content["model"]["learn_sigma"] is False
    arrays = load_arrays(COPIES, "dit_p8_nosigma_nodrop")
    out = lit_jax.load_model("m")(nhwc(arrays["x"]), arrays["t"], arrays["y"])
    assert relative_error(out, nhwc(arrays["out"])) < 2e-5


def test_export_and_reimport_need_no_flags() -> None:
    """The architecture travels in the metadata: kernel, heads and null row come back."""
    for src, layout, flags in ((DIT, "dit", DIT_FLAGS), (LIT, "lit", ["--set", "kernel_fn=gelu"])):
        name = Path(src).stem
        assert main(["--src", src, "--dst", f"{name}/a", *flags]) == 0
        file = f"{name}/out.safetensors"
        export = ["--export", "--src", f"{name}/a", "--dst", file, "--layout", layout]
        assert main(export) == 0
        assert main(["--src", file, "--dst", f"{name}/b"]) == 0
        models = [json.loads(Path(f"{name}/{d}/config.json").read_text())["model"] for d in "ab"]
        assert models[0] == models[1]
        official, written = load_file(src), load_file(file)
        assert set(official) == set(written)
        for key in set(official) - {"pos_embed"}:
            np.testing.assert_array_equal(official[key], written[key], err_msg=key)
    assert os.stat(file).st_mode & 0o077 == os.stat(f"{name}/a/config.json").st_mode & 0o077


def test_export_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--src", LIT, "--dst", "m"]) == 0
    export = ["--export", "--src", "m", "--dst"]
    err = refused(capsys, *export, "x.safetensors", "--layout", "dit")
    assert "cannot hold a LiT model with the 'linear' mixer; use layout 'lit'" in err
    assert "--export needs --layout (dit | lit | diffusers | dig | pixart" in refused(
        capsys, *export, "x.safetensors"
    )
    assert "must end in .safetensors" in refused(capsys, *export, "x.npz", "--layout", "lit")
    extra = refused(capsys, *export, "x.safetensors", "--layout", "lit", "--model", "LiT")
    assert "--model belong(s) to import" in extra
    assert "--verify belongs to import" in refused(
        capsys, *export, "x.safetensors", "--layout", "lit", "--verify"
    )
    gone = ["--export", "--src", "gone", "--dst", "x.safetensors", "--layout", "lit"]
    assert "no such model folder: gone" in refused(capsys, *gone)
    Path("x.safetensors").write_text("precious")
    assert "x.safetensors exists" in refused(capsys, *export, "x.safetensors", "--layout", "lit")
    assert Path("x.safetensors").read_text() == "precious"
    assert main([*export, "x.safetensors", "--layout", "lit", "--overwrite"]) == 0
    with safetensors.safe_open("x.safetensors", framework="np") as file:
        assert "blocks.2.attn.kv.weight" in file.keys()  # noqa: SIM118


def test_import_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    dst = ["--dst", "m"]
    assert "no such file: gone.safetensors" in refused(capsys, "--src", "gone.safetensors", *dst)
    Path("w.npz").write_bytes(b"0")
    assert "must end in .safetensors, .pt" in refused(capsys, "--src", "w.npz", *dst)
    Path("cut.safetensors").write_bytes(Path(LIT).read_bytes()[:5000])
    cut = refused(capsys, "--src", "cut.safetensors", *dst)
    assert "cut.safetensors cannot be read: it is cut short, 5,000 of 824,784 bytes" in cut
    missing = refused(capsys, "--src", DIT, *dst)
    assert missing.rstrip().endswith("Pass --model DiT --set num_heads=HEADS")
    assert "hidden_size: asked for 384" in refused(capsys, "--src", DIT, *dst, "--model", "DiT-S/8")
    assert "did you mean 'num_heads'" in refused(capsys, "--src", LIT, *dst, "--set", "num_head=2")
    err = refused(capsys, "--src", LIT, *dst, "--set", "mlp_ratio=abc")
    assert err == "error: model.mlp_ratio is 'abc' (str); it must be float\n"
    assert "not of the form key=value" in refused(capsys, "--src", LIT, *dst, "--set", "num_heads")
    assert "--layout belongs to --export" in refused(capsys, "--src", LIT, *dst, "--layout", "lit")
    assert "leave --weights out" in refused(capsys, "--src", LIT, *dst, "--weights", "ema")
    state = load_file(LIT)
    del state["blocks.1.attn.dwc.bias"]
    save_file(state | {"extra": np.zeros(2, np.float32)}, "bad.safetensors")
    err = refused(capsys, "--src", "bad.safetensors", *dst)
    assert "2 problem(s)" in err and "'extra' (2,)" in err and "blocks.1.attn.dwc.bias" in err


def test_source_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("download").mkdir()
    err = refused(capsys, "--src", "download", "--dst", "m")
    assert "download does not hold exactly one checkpoint" in err
    Path("download/lit.safetensors").write_bytes(Path(LIT).read_bytes())
    assert main(["--src", "download", "--dst", "m"]) == 0
    provenance = json.loads(Path("m/config.json").read_text())["provenance"]
    assert provenance["source"] == "lit.safetensors"


def test_destination_below_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes").write_text("mine")
    err = refused(capsys, "--src", "gone.safetensors", "--dst", "notes/m", "--overwrite")
    assert "no such file" in err
    err = refused(capsys, "--src", LIT, "--dst", "notes/deep/m", "--overwrite")
    assert "notes/deep/m cannot be written: " in err and "notes is a file, not a folder" in err
    assert main(["--src", LIT, "--dst", "m"]) == 0
    err = refused(
        capsys, "--export", "--src", "m", "--dst", "notes/x.safetensors", "--layout", "lit"
    )
    assert "notes is a file, not a folder" in err and Path("notes").read_text() == "mine"


def test_existing_destination(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--src", LIT, "--dst", "m"]) == 0
    before = Path("m/config.json").read_bytes()
    # Refused before the source is even looked at.
    assert "m exists; pass --overwrite" in refused(capsys, "--src", DIT, "--dst", "m")
    assert Path("m/config.json").read_bytes() == before
    assert main(["--src", DIT, "--dst", "m", *DIT_FLAGS, "--overwrite"]) == 0
    assert json.loads(Path("m/config.json").read_text())["model"]["family"] == "DiT"
    Path("photos").mkdir()
    Path("photos/me.jpg").write_text("me")
    err = refused(capsys, "--src", LIT, "--dst", "photos", "--overwrite")
    assert "not a model folder" in err and Path("photos/me.jpg").exists()


def test_settings_are_typed() -> None:
    groups = [["a=4", "b=0.5"], ["c=none", "d=False", "e=8x12", "f=relu", "g=1e-3"]]
    assert parse_settings(groups) == {
        "a": 4,
        "b": 0.5,
        "c": None,
        "d": False,
        "e": (8, 12),
        "f": "relu",
        "g": 1e-3,
    }


def test_settings_as_json_and_python() -> None:
    groups = [["a=[1, 2]", 'b={"c": null, "d": [3]}', "e={'f': None}", "g=(8, 16)"]]
    expected = {"a": [1, 2], "b": {"c": None, "d": [3]}, "e": {"f": None}, "g": (8, 16)}
    assert parse_settings(groups) == expected
    with pytest.raises(ValueError, match=r"--set: '\[1, ' is neither JSON nor a Python literal"):
        parse_settings([["a=[1, "]])


def test_half_precision_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    state = {key: torch.from_numpy(value).bfloat16() for key, value in load_file(LIT).items()}
    save_torch(state, "half.safetensors")
    assert main(["--src", "half.safetensors", "--dst", "m"]) == 0
    kernel = lit_jax.load_model("m").x_embedder.kernel[...]
    weight = state["x_embedder.proj.weight"].float().numpy()
    np.testing.assert_array_equal(kernel[0], weight[:, 0, 0, 0])


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The converter as a program of its own, from another folder."""
    script = ROOT / "tools" / "convert_torch_ckpt.py"
    code = f"import runpy, sys; sys.argv = {[str(script), *arguments]}; {before}\n"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_safetensors_never_need_torch() -> None:
    hide = "sys.modules['torch'] = None"
    done = run("--src", LIT, "--dst", "m", before=hide)
    assert done.returncode == 0, done.stderr
    assert Path("m/params").is_dir()
    Path("w.pt").write_bytes(b"0")
    for arguments in (["--src", LIT, "--verify"], ["--src", "w.pt"]):
        done = run(*arguments, "--dst", "n", before=hide)
        assert done.returncode == 2 and "needs torch: pip install" in done.stderr
        assert "Traceback" not in done.stderr and not Path("n").exists()


# From here on torch is at work.


def official_train_checkpoint(path: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A file as train.py writes it: model, ema, opt, and an argparse.Namespace."""
    torch = pytest.importorskip("torch")
    model = load_state_dict(COPIES, "dit_p8_nosigma_nodrop")
    ema = {k: v if k == "pos_embed" else v * np.float32(0.5) for k, v in model.items()}
    torch.save(
        {
            "model": {key: torch.from_numpy(value) for key, value in model.items()},
            "ema": {key: torch.from_numpy(value) for key, value in ema.items()},
            "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "args": argparse.Namespace(model="DiT-XL/2", global_seed=0),
        },
        path,
    )
    return model, ema


@pytest.mark.parametrize("weights", [None, "ema", "model"])
def test_train_checkpoint(weights: str | None) -> None:
    model, ema = official_train_checkpoint("0050000.pt")
    flags = [] if weights is None else ["--weights", weights]
    assert main(["--src", "0050000.pt", "--dst", "m", *DIT_FLAGS, *flags]) == 0
    content = json.loads(Path("m/config.json").read_text())
    assert content["provenance"]["weights"] == (weights or "ema")
    expected = (model if weights == "model" else ema)["final_layer.linear.weight"].T
    np.testing.assert_array_equal(lit_jax.load_model("m").final_layer.linear.kernel[...], expected)


def test_code_in_a_pickle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    state = load_state_dict(COPIES, "dit_p8_nosigma_nodrop")
    torch.save({"model": state, "args": Path("x")}, "odd.pt")
    err = refused(capsys, "--src", "odd.pt", "--dst", "m", *DIT_FLAGS)
    assert "odd.pt is refused: unpickling it would call " in err
    assert "torch.save(model.state_dict(), FILE)" in err
    Path("noise.pt").write_bytes(b"not a checkpoint")
    assert "cannot be read" in refused(capsys, "--src", "noise.pt", "--dst", "m")
    torch.save({"epoch": 3}, "other.pt")
    assert "'epoch' is int, not a tensor" in refused(capsys, "--src", "other.pt", "--dst", "m")
    torch.save([1, 2], "list.pt")
    assert "is a list" in refused(capsys, "--src", "list.pt", "--dst", "m")


def test_torch_files_both_ways() -> None:
    torch = pytest.importorskip("torch")
    assert main(["--src", LIT, "--dst", "a"]) == 0
    assert main(["--export", "--src", "a", "--dst", "out.pt", "--layout", "lit"]) == 0
    stored = torch.load("out.pt", weights_only=True)
    for key, value in load_file(LIT).items():
        np.testing.assert_allclose(stored[key].numpy(), value, rtol=0, atol=2e-7, err_msg=key)
    torch.save(stored, "legacy.pt", _use_new_zipfile_serialization=False)
    for file in ("out.pt", "legacy.pt"):
        assert main(["--src", file, "--dst", "b", "--overwrite"]) == 0


@pytest.mark.parametrize(("src", "flags"), [(DIT, DIT_FLAGS), (LIT, [])], ids=["dit", "lit"])
def test_verify_passes_and_fails(
    src: str,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    assert main(["--src", src, "--dst", "m", *flags, "--verify"]) == 0
    assert "verify noise: max |difference|" in capsys.readouterr().out
    original = Import.pieces

    def wrong(self: Import, path: str) -> Iterator[tuple[int | None, np.ndarray]]:
        for index, array in original(self, path):
            yield index, array + np.float32(0.01) if path == "blocks/attn/v/bias" else array

    monkeypatch.setattr(Import, "pieces", wrong)
    assert main(["--src", src, "--dst", "n", *flags, "--verify"]) == 1
    captured = capsys.readouterr()
    assert "torch outputs differ: noise by" in captured.err and not Path("n").exists()
