"""Weight files: safetensors without torch, read lazily, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Importing ml_dtypes teaches numpy the name "bfloat16", which the safetensors reader asks it for.
import ml_dtypes  # noqa: F401
import numpy as np
import safetensors
import safetensors.numpy

from lit_jax.config import DiTConfig, architecture
from lit_jax.weights.tables import Shape

ARCHITECTURE_KEY = "lit_jax.model"
"""Entry of the safetensors metadata that holds the architecture as JSON."""


_SHARD = re.compile(r"-\d+-of-\d+\.")


class StoredTensor:
    """A tensor of an open safetensors file: the shape now, the numbers on `np.asarray`."""

    def __init__(self, handle: Any, key: str) -> None:
        self.shape: Shape = tuple(handle.get_slice(key).get_shape())
        self._handle, self._key = handle, key

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._handle.get_tensor(self._key), dtype=dtype)


def read_safetensors(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Tensors of a safetensors file, and the architecture stored with them ({} if none).

    Raises ValueError when the file is truncated or no safetensors file.
    """
    try:
        handle = safetensors.safe_open(str(path), framework="np")
        state = {key: StoredTensor(handle, key) for key in handle.keys()}  # noqa: SIM118
        metadata = handle.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    stored = json.loads(metadata[ARCHITECTURE_KEY]) if ARCHITECTURE_KEY in metadata else {}
    return state, stored


def write_safetensors(path: str | Path, state: Mapping[str, np.ndarray], config: DiTConfig) -> None:
    """Writes `state` with the architecture in its metadata; the file appears whole or never."""
    path = Path(path)
    metadata = {"format": "pt", ARCHITECTURE_KEY: json.dumps(architecture(config), sort_keys=True)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # The writer makes files that only the owner may read; a plain file has the usual mode.
        temporary.touch()
        mode = temporary.stat().st_mode
        safetensors.numpy.save_file(dict(state), temporary, metadata=metadata)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def only_weight_file(folder: Path, suffixes: tuple[str, ...]) -> Path:
    """The weight file of a folder that holds exactly one, which is not one shard of several.

    Raises ValueError that lists what was found.
    """
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    found = [name for name in names if Path(name).suffix in suffixes]
    parts = "model_index.json" in names or any(_SHARD.search(name) for name in found)
    if len(found) == 1 and not parts:
        return folder / found[0]
    raise ValueError(
        f"{folder} does not hold exactly one weight file ({', '.join(suffixes)}), but"
        f" {', '.join((found or names)[:8]) or 'nothing'}; name a file (sharded checkpoints and"
        " diffusers folders are not supported yet)"
    )


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
