"""safetensors files: read tensor by tensor, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Importing ml_dtypes teaches numpy the name "bfloat16", which the safetensors reader asks it for.
import ml_dtypes  # noqa: F401
import numpy as np
import safetensors
import safetensors.numpy

from lit_jax.checkpoints.weight_files import WINDOW_BYTES, cannot_write, require_checkpoint
from lit_jax.models.family import architecture
from lit_jax.models.registry import NetworkConfig
from lit_jax.storage.files import atomic_path

ARCHITECTURE_KEY = "lit_jax.model"
"""Entry of the safetensors metadata that holds the architecture as JSON."""

SAFETENSORS = (".safetensors",)

# What numpy can hold, by its name in the header: not the 8-bit floats, not complex numbers.
_READABLE = {
    "F64",
    "F32",
    "F16",
    "BF16",
    "BOOL",
    *(f"{s}{n}" for s in "IU" for n in (8, 16, 32, 64)),
}

FLOATS = "save it as float32, float16 or bfloat16"
"""The remedy for a tensor of another kind."""


class SafetensorsReader:
    """A safetensors file, mapped into memory window by window.

    Raises ValueError when the file is truncated or no safetensors file, and for tensors of a type
    that numpy does not have.
    """

    def __init__(self, path: Path) -> None:
        require_checkpoint(path)
        self._path, self._read_bytes = path, 0
        try:
            self._handle = self._open()
            slices = {key: self._handle.get_slice(key) for key in self._handle.keys()}  # noqa: SIM118
            metadata = self._handle.metadata() or {}
        except (safetensors.SafetensorError, OSError) as error:
            reason = _truncation(path) or f"it is no safetensors file ({error})"
            raise ValueError(f"{path} cannot be read: {reason}") from error
        for key, entry in slices.items():
            if (dtype := entry.get_dtype()) not in _READABLE:
                raise ValueError(f"{path}: {key!r} has dtype {dtype}; {FLOATS}")
        self.shapes = {key: tuple(entry.get_shape()) for key, entry in slices.items()}
        self.stored = _architecture(path, metadata)
        """The architecture that this package stored with the tensors, {} if none."""

    def _open(self) -> Any:
        return safetensors.safe_open(str(self._path), framework="np")

    def read(self, key: str) -> np.ndarray:
        if self._read_bytes > WINDOW_BYTES:
            self._handle, self._read_bytes = self._open(), 0
        try:
            array: np.ndarray = self._handle.get_tensor(key)
        except (safetensors.SafetensorError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._path}: {key!r} cannot be read: {error}") from error
        self._read_bytes += array.nbytes
        return array


def _architecture(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the stored architecture. Raises ValueError for one that this package has not
    written."""
    try:
        stored = json.loads(metadata.get(ARCHITECTURE_KEY, "{}"))
    except json.JSONDecodeError:
        stored = None
    if not isinstance(stored, dict):
        text = metadata[ARCHITECTURE_KEY]
        raise ValueError(
            f"{path}: the metadata {ARCHITECTURE_KEY!r} is {text[:60]!r}, not a JSON object; save"
            " the file without that metadata and pass --model and --set"
        )
    return stored


def _truncation(path: Path) -> str | None:
    """Return how much of a safetensors file is missing, by its own header; None if nothing is, or
    if it has no such header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 or length > 100 * 2**20:
            return None
        header = file.read(length)
    if header[:1] != b"{":
        return None
    needed = f"more than {8 + length:,}"
    if len(header) == length:
        try:
            entries = json.loads(header)
            ends = [int(e["data_offsets"][1]) for k, e in entries.items() if k != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError):
            return None
        total = 8 + length + max(ends, default=0)
        if size >= total:
            return None
        needed = f"{total:,}"
    return f"it is cut short, {size:,} of {needed} bytes; download or copy it again"


def write_safetensors(
    path: str | Path, state: Mapping[str, np.ndarray], config: NetworkConfig
) -> None:
    """Write `state` with the architecture in its metadata; the file appears whole or never.

    Raises ValueError when the disk does not take it.
    """
    path = Path(path)
    metadata = {"format": "pt", ARCHITECTURE_KEY: json.dumps(architecture(config), sort_keys=True)}
    try:
        with atomic_path(path) as temporary:
            # The writer makes files that only the owner may read; a plain file has the usual mode.
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.numpy.save_file(dict(state), temporary, metadata=metadata)
            os.chmod(temporary, mode)
    except (safetensors.SafetensorError, OSError) as error:
        raise cannot_write(path, error) from error
