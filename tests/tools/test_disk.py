"""The disk: too small, full on the way, interrupted; and what is on stderr when all goes well."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from lit_jax.checkpoints.convert import Import
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.models.family import architecture
from lit_jax.models.registry import model_config
from support.golden_cases import COPIES
from tools import convert_torch_ckpt
from tools.convert_torch_ckpt import main

ROOT = Path(__file__).resolve().parents[2]
LIT = str(COPIES / "lit_dit_p2.safetensors")
DIT = str(COPIES / "dit_p8_nosigma_nodrop.safetensors")

# A process whose files may have 20 kB: the system refuses the rest as it would on a full disk.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, {root!r})
from tools.convert_torch_ckpt import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
sys.exit(main({arguments!r}))
"""
BAR = re.compile(r"([\r\n]?converting: [^\r\n]*)+\n?")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def limited(*arguments: str) -> str:
    """stderr without the progress bar of a run that must fail and leave nothing behind."""
    before = set(os.listdir())
    code = LIMITED.format(root=str(ROOT), arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert set(os.listdir()) == before, "something was left"
    return BAR.sub("", done.stderr)


def test_disk_full_during_an_import() -> None:
    assert limited("--src", LIT, "--dst", "deep/m") == (
        "error: deep/m cannot be written: File too large\n"
    )


@pytest.mark.parametrize(
    ("dst", "src", "layout"),
    [
        ("a/b/x.safetensors", LIT, "lit"),
        ("a/b/x.pt", LIT, "lit"),
        ("a/b/x", str(COPIES / "t5"), "transformers"),
    ],
)
def test_disk_full_during_an_export(dst: str, src: str, layout: str) -> None:
    if dst.endswith(".pt"):
        pytest.importorskip("torch")
    assert main(["--src", src, "--dst", "m"]) == 0
    error = limited("--export", "--src", "m", "--dst", dst, "--layout", layout)
    assert error == f"error: {dst} cannot be written: File too large\n"


@pytest.mark.parametrize(
    ("free", "dtype", "message"),
    [
        (600_000, "float32", "has 0.6 MB free; the parameters need 0.8 MB in float32. Free some"),
        (300_000, "bfloat16", "has 0.3 MB free; the parameters need 0.4 MB in bfloat16. Free some"),
        (600_000, "bfloat16", ""),
    ],
)
def test_a_disk_that_is_too_small(
    free: int,
    dtype: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        convert_torch_ckpt.shutil, "disk_usage", lambda path: SimpleNamespace(free=free)
    )
    code = main(["--src", LIT, "--dst", "deep/m", "--dtype", dtype])
    assert code == (2 if message else 0)
    assert message in capsys.readouterr().err
    assert Path("deep").exists() != bool(message)


def test_sizes_in_words() -> None:
    words = [convert_torch_ckpt._bytes(count) for count in (0, 5e6, 9.99e8, 1e9, 2.75e10)]
    assert words == ["0.0 MB", "5.0 MB", "999.0 MB", "1.0 GB", "27.5 GB"]


def test_an_interrupted_import(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while tensors are read and written."""
    original = Import.pieces

    def pieces(self: Import, path: str) -> Iterator[tuple[int | None, np.ndarray]]:
        if path == "blocks/mlp/fc2/kernel":
            signal.raise_signal(signal.SIGINT)
        yield from original(self, path)

    monkeypatch.setattr(Import, "pieces", pieces)
    # A test run that was started in the background inherits that Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["--src", LIT, "--dst", "deep/m"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    error = BAR.sub("", capsys.readouterr().err)
    assert error == "interrupted; nothing was written\n"
    assert os.listdir() == []


def test_bfloat16_is_written_as_such() -> None:
    """Every array on disk, in half the bytes; the folder says so."""
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        assert main(["--src", LIT, "--dst", dtype, "--dtype", dtype]) == 0
        provenance = json.loads(Path(dtype, "config.json").read_text())["provenance"]
        assert provenance["dtype"] == dtype
        tree = ocp.PyTreeCheckpointHandler().metadata(Path(dtype, "params").absolute()).tree
        leaves = traverse_util.flatten_dict(tree, sep="/")
        assert {str(np.dtype(leaf.dtype)) for leaf in leaves.values()} == {dtype}
        files = [path for path in Path(dtype, "params").rglob("*") if path.parent.name == "d"]
        sizes[dtype] = sum(path.stat().st_size for path in files)
    assert sizes["bfloat16"] < 0.65 * sizes["float32"]
    assert architecture(ModelFolder("float32").config) == architecture(
        ModelFolder("bfloat16").config
    )


def test_inception_is_not_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    import jax

    from lit_jax.checkpoints.writing import save_model_dir
    from lit_jax.models.functional import abstract_params

    config = model_config("Inception", width_divisor=16)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(config))
    save_model_dir("m", config, zeros, {})
    export = ["--export", "--src", "m", "--dst", "x.safetensors", "--layout", "pytorch-fid"]
    assert main(export) == 0
    before = set(os.listdir())
    assert main(["--src", "x.safetensors", "--dst", "n", "--dtype", "bfloat16"]) == 2
    error = capsys.readouterr().err
    assert error == "error: --dtype bfloat16: rounded weights would change every score\n"
    assert set(os.listdir()) == before


@pytest.mark.parametrize("flags", [["--dtype", "bfloat16"], []], ids=["bfloat16", "float32"])
def test_stderr_of_a_conversion_is_the_progress_bar(flags: list[str]) -> None:
    script = str(ROOT / "tools" / "convert_torch_ckpt.py")
    command = [sys.executable, script, "--src", LIT, "--dst", "m", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "converting: 100%" in done.stderr and BAR.fullmatch(done.stderr), done.stderr
