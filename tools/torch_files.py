"""Reading and writing torch files without running code from them."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lit_jax.checkpoints.safetensors_files import FLOATS
from lit_jax.checkpoints.weight_files import WINDOW_BYTES, cannot_write, require_checkpoint
from lit_jax.keymap.rows import Shape
from lit_jax.storage.files import atomic_path

TORCH = (".pt", ".pth", ".bin")

# Entries of a checkpoint with two sets of weights: ours -> theirs; the first is what the official
# sampling script loads. DiT's train.py, then PixArt's save_checkpoint.
CONTAINERS = (
    {"ema": "ema", "model": "model"},
    {"model": "state_dict", "ema": "state_dict_ema"},
)

# What torch's message on a file that it would have to execute contains -> ours.
_PROGRAMS = {
    "TorchScript": (
        "is refused: it is a TorchScript program, not a file of tensors. Save its weights alone:"
        " torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
    ),
    ".tar format": (
        "is refused: it is a tar archive of the first torch releases, which cannot be read without"
        " running its code. Load it with the torch it was made for and save the weights again:"
        " torch.save(model.state_dict(), NEW_FILE)"
    ),
}


def import_torch(purpose: str) -> Any:
    """Return torch, or a ValueError that says what needs it."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"{purpose} needs torch: pip install 'lit_jax[convert]' (.safetensors files do not)"
        ) from None
    return torch


class TorchReader:
    """A torch file, mapped into memory window by window.

    `kind` is which of its sets of weights this is, "model" or "ema". Raises ValueError for a file
    that is no checkpoint of plain tensors, and for a set it does not have.
    """

    def __init__(self, path: Path, weights: str | None) -> None:
        self._path, self._weights, self._read_bytes = path, weights, 0
        self.kind, self._tensors = _select(path, _load(path), weights)
        for key, value in self._tensors.items():
            if problem := _entry_problem(key, value):
                raise ValueError(f"{path}: {problem}")
        self.shapes: Mapping[str, Shape] = {k: tuple(v.shape) for k, v in self._tensors.items()}

    def read(self, key: str) -> np.ndarray:
        if self._read_bytes > WINDOW_BYTES and zipfile.is_zipfile(self._path):
            self._tensors = {}
            self._tensors = _select(self._path, _load(self._path), self._weights)[1]
            self._read_bytes = 0
        tensor = self._tensors[key].detach().resolve_neg()
        self._read_bytes += tensor.numel() * tensor.element_size()
        if str(tensor.dtype) == "torch.bfloat16":
            # torch hands over no bfloat16, which numpy has from ml_dtypes alone; the bits it does.
            return tensor.view(import_torch("bfloat16").int16).numpy().view(ml_dtypes.bfloat16)
        array: np.ndarray = tensor.numpy()
        return array


def _entry_problem(key: Any, value: Any) -> str | None:
    """Return why an entry of a state dict is no tensor that numpy can hold; None when it is one."""
    if not isinstance(key, str):
        return f"key {key!r} is {type(key).__name__}, not a string; this is no state dict"
    if not hasattr(value, "detach"):
        return f"entry {key!r} is {type(value).__name__}, not a tensor"
    torch = import_torch("a torch file")
    name = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided:
        return f"{key!r} is a sparse tensor ({name}); save it as a dense one (tensor.to_dense())"
    if value.is_quantized:
        return f"{key!r} has the quantised dtype {name}; {FLOATS} (tensor.dequantize())"
    if value.is_meta:
        return f"{key!r} ({name}) has a shape but no numbers: it is on the meta device"
    if value.is_complex() or not _numpy_has(value.dtype):
        return f"{key!r} has dtype {name}; {FLOATS}"
    return None


def _numpy_has(dtype: Any) -> bool:
    torch = import_torch("a torch file")
    if dtype == torch.bfloat16:
        return True
    try:
        torch.empty(0, dtype=dtype).numpy()
    except (TypeError, RuntimeError):
        return False
    return True


def _load(path: Path) -> Any:
    """Return the content of a torch file; the arguments that DiT's train.py stores are allowed."""
    torch = import_torch(f"a {path.suffix} file")
    require_checkpoint(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise ValueError(f"{path} {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """Return why a file could not be loaded, as the rest of a sentence, and what helps."""
    for kind, remedy in _PROGRAMS.items():
        if kind in str(error):
            return remedy
    if needed := re.search(r"(?:GLOBAL|function|class|import) ([\w.]+)", str(error)):
        return (
            f"is refused: unpickling it would call {needed[1]}, and a file that calls functions can"
            " do anything. A checkpoint needs tensors alone; if you trust the file, save those:"
            " torch.save(model.state_dict(), FILE)"
        )
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return (
            f"cannot be read: it is cut short at {path.stat().st_size:,} bytes, the end of the"
            " archive is missing; download or copy it again"
        )
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    first = inner[1] if inner else (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot be read: it is no file of tensors that torch.save wrote ({first})"


def _select(path: Path, content: Any, weights: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return (which weights, their tensors) of a file's content."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is a {type(content).__name__}, not a dict of tensors")
    for names in CONTAINERS:
        sets = [ours for ours, key in names.items() if isinstance(content.get(key), Mapping)]
        if sets:
            kind = weights or sets[0]
            if kind not in sets:
                raise ValueError(f"{path} has no {kind!r} weights; it has {', '.join(sets)}")
            return kind, content[names[kind]]
    if weights == "ema":
        raise ValueError(f"{path} holds one set of weights and no 'ema'; leave --weights out")
    return "model", content


def write_torch(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a plain state dict; the file appears whole or never.

    Raises ValueError when the disk does not take it.
    """
    torch = import_torch(f"a {path.suffix} file")
    try:
        # Given a name, torch would report a full disk as a wrong position in the file.
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save({key: torch.from_numpy(value) for key, value in state.items()}, file)
    except (RuntimeError, OSError) as error:
        raise cannot_write(path, _first_cause(error)) from error


def _first_cause(error: BaseException) -> BaseException:
    """Return the operating system's own error, where torch's writer raised another one on top of
    it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause or error
