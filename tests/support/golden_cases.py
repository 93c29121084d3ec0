"""Where the golden numbers of the official implementations are, for all tests.

The full set lives outside the repository, in the folder named by LIT_JAX_GOLDEN or in
`../shared/golden` next to the checkout. The cases that the suite needs are also in
`tests/golden`, so that it is complete on its own. Tests run against every folder that has the case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COPIES = Path(__file__).resolve().parents[1] / "golden"


def golden_folders() -> list[Path]:
    """Existing golden folders, the preferred one first."""
    outside = os.environ.get("LIT_JAX_GOLDEN")
    if outside and not Path(outside).is_dir():
        raise FileNotFoundError(f"LIT_JAX_GOLDEN is {outside!r}, which is not a folder")
    full = Path(outside).resolve() if outside else REPOSITORY.parent / "shared" / "golden"
    return [full, COPIES] if full.is_dir() and full != COPIES else [COPIES]


def golden_path(name: str) -> Path:
    """The first existing `name` of the golden folders."""
    for folder in golden_folders():
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is in none of {[str(f) for f in golden_folders()]}")


def golden_sources(name: str) -> list[Any]:
    """pytest parameters: every folder that holds `name`, under the ids "full" and "copy"."""
    found = [folder for folder in golden_folders() if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(f"{name} is in none of {[str(f) for f in golden_folders()]}")
    return [pytest.param(f, id="copy" if f == COPIES else "full") for f in found]


def load_arrays(folder: Path, case: str) -> dict[str, np.ndarray]:
    """All arrays of `case`.npz."""
    with np.load(folder / f"{case}.npz") as stored:
        return {name: stored[name] for name in stored.files}


def load_meta(folder: Path, case: str) -> dict[str, Any]:
    """The description of `case`."""
    meta: dict[str, Any] = json.loads((folder / f"{case}.json").read_text())
    return meta


def load_state_dict(folder: Path, case: str) -> dict[str, np.ndarray]:
    """Official weights of `case` in torch layout: `case`.safetensors, else `case`.pt (needs torch).

    Without torch the weights of the copy are used, so that the arrays of the full set are tested
    on a machine without it, too.
    """
    from safetensors.numpy import load_file

    if (folder / f"{case}.safetensors").exists():
        return load_file(folder / f"{case}.safetensors")
    try:
        import torch
    except ImportError:
        return load_file(COPIES / f"{case}.safetensors")
    stored = torch.load(folder / f"{case}.pt", map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in stored.items()}


def nhwc(array_NCHW: np.ndarray) -> np.ndarray:
    """Golden images [..., C, H, W] as [..., H, W, C]."""
    return np.moveaxis(array_NCHW, -3, -1)


def relative_error(value: Any, expected: Any) -> float:
    """Largest absolute error over the largest expected magnitude."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape, (value.shape, expected.shape)
    return float(np.abs(value - expected).max() / np.abs(expected).max())
