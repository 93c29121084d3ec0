"""Files that appear whole or not at all, and hashes that say what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed to it when the block ends without an
    error.

    A reader sees the old file or the whole new one; after an error the old one is still there.
    Folders are created. A killed process leaves its temporary file, `.NAME.RANDOM.tmp`, behind.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Processes of two hosts, or of two containers, may have the same number.
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], sort_keys: bool = False
) -> None:
    """Write a JSON object atomically, indented by two spaces."""
    write_text(path, json.dumps(content, indent=2, sort_keys=sort_keys) + "\n")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return sha256 (hex) of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Return sha256 (hex) of the dtype, shape and bytes of an array: which images a reference
    was."""
    digest = hashlib.sha256(f"{array.dtype.str}|{array.shape}|".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
