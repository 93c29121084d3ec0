"""The command line that rounds a T5 to int8, and what cannot be done with the result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lit_jax.models.t5.config import TOKENIZER_FILE
from support.models import text_encoder_identity
from support.text_encoder_cases import write_text_encoder
from tools.convert_torch_ckpt import main as convert
from tools.quantize_t5 import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_program() -> None:
    """As a user runs it: from anywhere, as a file."""
    write_text_encoder(Path("t5"))
    command = [
        sys.executable,
        str(ROOT / "tools/quantize_t5.py"),
        "--src",
        "t5",
        "--dst",
        "deep/t5",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 matrices as int8" in done.stdout and "rounding error 0." in done.stdout
    assert done.stdout.endswith("wrote deep/t5\n") and "note:" not in done.stdout
    ours, theirs = (text_encoder_identity(path) for path in ("t5", "deep/t5"))
    ours.require_same(theirs, "t5", "deep/t5")


def test_notes_and_replacement(capsys: pytest.CaptureFixture[str]) -> None:
    write_text_encoder(Path("t5"))
    assert main(["--src", "t5", "--dst", "int8"]) == 0
    (Path("t5") / TOKENIZER_FILE).unlink()
    assert main(["--src", "t5", "--dst", "int8"]) == 2
    assert "int8 exists; pass --overwrite" in capsys.readouterr().err
    assert (Path("int8") / TOKENIZER_FILE).exists()
    assert main(["--src", "t5", "--dst", "int8", "--overwrite"]) == 0
    assert f"note: t5 has no {TOKENIZER_FILE}" in capsys.readouterr().out
    assert not (Path("int8") / TOKENIZER_FILE).exists()


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    write_text_encoder(Path("t5"))
    assert main(["--src", "t5", "--dst", "int8"]) == 0
    before = sorted(os.listdir())
    for arguments, message in (
        (["--src", "nowhere", "--dst", "x"], "nowhere is not a model folder"),
        (["--src", "int8", "--dst", "x"], "int8 holds int8 weights already"),
        (["--src", "t5", "--dst", "t5", "--overwrite"], "--dst t5 is --src"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
        assert sorted(os.listdir()) == before
    assert json.loads(Path("t5/config.json").read_text())["model"]["weights"] == "float"


def test_a_full_disk_is_noticed_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_encoder(Path("t5"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))
    assert main(["--src", "t5", "--dst", "int8"]) == 2
    assert "for the int8 weights, 1e-07 GB are free" in capsys.readouterr().err
    assert os.listdir() == ["t5"]


def test_no_export(capsys: pytest.CaptureFixture[str]) -> None:
    write_text_encoder(Path("t5"))
    assert main(["--src", "t5", "--dst", "int8"]) == 0
    arguments = ["--export", "--src", "int8", "--dst", "x", "--layout", "transformers"]
    assert convert(arguments) == 2
    assert "int8 holds int8 weights, which no layout of PyTorch has" in capsys.readouterr().err
    assert not Path("x").exists()
