"""Torch files: tensors of every kind that they may hold, and how they are mapped."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools import torch_files
from tools.convert_torch_ckpt import main
from tools.torch_files import TorchReader

torch = pytest.importorskip("torch")

REMEDY = "save it as float32, float16 or bfloat16"
ONES = torch.ones(4, 4)


def quantised() -> Any:
    return torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8)


REFUSED = {
    "key": (lambda: {0: ONES}, "key 0 is int, not a string; this is no state dict"),
    "float8": (
        lambda: {"w": ONES.to(torch.float8_e4m3fn)},
        f"'w' has dtype float8_e4m3fn; {REMEDY}",
    ),
    "complex": (lambda: {"w": ONES.to(torch.complex64)}, f"'w' has dtype complex64; {REMEDY}"),
    "sparse": (lambda: {"w": ONES.to_sparse()}, "'w' is a sparse tensor (float32); save it as a"),
    "rows": (lambda: {"w": ONES.to_sparse_csr()}, "'w' is a sparse tensor (float32); save it as a"),
    "quantised": (lambda: {"w": quantised()}, f"'w' has the quantised dtype qint8; {REMEDY}"),
    "meta": (lambda: {"w": ONES.to("meta")}, "'w' (float32) has a shape but no numbers"),
}


@pytest.mark.filterwarnings("ignore")  # torch calls some of these kinds a prototype
@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_numpy_cannot_hold(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, message = REFUSED[case]
    torch.save(build(), tmp_path / "x.pt")
    assert main(["--src", str(tmp_path / "x.pt"), "--dst", str(tmp_path / "m")]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: {tmp_path}/x.pt: {message}") and text.count("\n") == 1
    assert os.listdir(tmp_path) == ["x.pt"]


def test_unusual_tensors_that_are_read(tmp_path: Path) -> None:
    state = {
        "parameter": torch.nn.Parameter(2 * ONES),
        "negated view": torch.complex(ONES, ONES).conj().imag,
        "double": ONES.double(),
    }
    torch.save(state, tmp_path / "x.pt")
    reader = TorchReader(tmp_path / "x.pt", None)
    for key, value in {"parameter": 2, "negated view": -1, "double": 1}.items():
        np.testing.assert_array_equal(reader.read(key), np.full((4, 4), value))


def torchscript(path: Path) -> Path:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    return path


def first_releases(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
@pytest.mark.parametrize(
    ("build", "kind"), [(torchscript, "TorchScript program"), (first_releases, "tar archive")]
)
def test_programs_are_refused_without_advice_to_run_them(
    build: Any, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        TorchReader(build(tmp_path / "x.pt"), None)
    text = str(error.value)
    assert f"x.pt is refused: it is a {kind}" in text and "torch.save(" in text
    assert "weights_only" not in text and "\n" not in text


def test_the_mapping_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the window is read the file is mapped anew; the numbers stay the same."""
    monkeypatch.setattr(torch_files, "WINDOW_BYTES", 10)
    loaded = []
    original = torch_files._load
    monkeypatch.setattr(torch_files, "_load", lambda path: loaded.append(1) or original(path))
    numbers = torch.arange(8.0)
    sets = {"model": {"a": numbers}, "ema": {"a": -numbers}}
    torch.save(sets, tmp_path / "x.pt")
    reader = TorchReader(tmp_path / "x.pt", "model")
    for _ in range(3):
        np.testing.assert_array_equal(reader.read("a"), numbers.numpy())
    assert len(loaded) == 3
    torch.save(sets, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    loaded.clear()
    reader = TorchReader(tmp_path / "old.pt", "ema")
    for _ in range(3):
        np.testing.assert_array_equal(reader.read("a"), -numbers.numpy())
    assert len(loaded) == 1, "what cannot be mapped is in memory already"
