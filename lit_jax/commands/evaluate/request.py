"""The request that an output of `evaluate` belongs to, and the working folder that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lit_jax.commands.evaluate.record import EVALUATOR
from lit_jax.config.evaluate import EvaluateConfig
from lit_jax.evaluation.network import Network
from lit_jax.evaluation.reference import Reference
from lit_jax.runs.requests import REQUEST, differences


def clean_up(work: Path) -> None:
    """Remove the working folder; the request, which says whose it is, goes last."""
    if not work.exists():
        return
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != REQUEST:
            entry.unlink()
    (work / REQUEST).unlink(missing_ok=True)
    work.rmdir()


def request_of(config: EvaluateConfig, network: Network, reference: Reference) -> dict[str, Any]:
    """Return everything besides the samples that decides the scores, by content: the same images
    may lie elsewhere."""
    return {
        "evaluator": EVALUATOR,
        "reference_fingerprint": reference.fingerprint(),
        "resolution": config.reference.resolution,
        "reference_images": len(reference.kept),
        "inception_sha256": network.sha256,
        "preprocessing": network.config.preprocessing,
        "is_splits": config.is_splits,
    }


def stored(out: Path) -> dict[str, Any] | None:
    """Return the result that is there already; ValueError for a file that is none."""
    if not out.exists():
        return None
    content = read_json(out)
    if not isinstance(content.get("request"), dict):
        raise ValueError(f"{out} exists and is no result of this job; choose another --out")
    return content


def stored_work(work: Path) -> dict[str, Any] | None:
    """Return the request of unfinished work; ValueError for a folder that is none."""
    if (work / REQUEST).exists():
        return read_json(work / REQUEST)
    # A run that was killed at its first file leaves a hidden one.
    if work.exists() and any(path.name[0] != "." for path in work.iterdir()):
        raise ValueError(f"{work} exists and is no working folder of this job; move it")
    return None


def require_same(
    path: Path, content: dict[str, Any], request: dict[str, Any], names: Collection[str]
) -> None:
    """Raise ValueError when these entries of the request in `content` differ from `request`."""
    was, asked = (
        {name: side.get(name) for name in names} for side in (content["request"], request)
    )
    if differing := differences(was, asked):
        raise ValueError(
            f"{path} belongs to another request: {'; '.join(differing)}; choose another --out, or"
            " remove it"
        )


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} exists and is not JSON ({error}); move it") from error
    return content if isinstance(content, dict) else {}
