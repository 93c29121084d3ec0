"""An evaluation that is killed at random moments ends in the same bytes."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from lit_jax.commands.evaluate.job import evaluate
from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from support import kills
from support.evaluation_cases import pictures, save_inception


def job(inputs: Path, out: Path) -> None:
    """Reference and samples are measured; the statistics are kept beside the scores."""
    reference = ReferenceConfig(source=str(inputs / "reference.npz"), cache_dir=str(out / "cache"))
    evaluate(
        EvaluateConfig(
            reference=reference,
            samples=str(inputs / "samples.npz"),
            inception=str(inputs / "inception"),
            out=str(out / "metrics.json"),
        )
    )


@pytest.mark.slow
def test_kills(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    save_inception(inputs / "inception")
    np.savez(inputs / "samples.npz", arr_0=pictures(32, seed=1))
    np.savez(inputs / "reference.npz", arr_0=pictures(32, seed=2))
    runs = tmp_path / "runs"
    runs.mkdir()
    hits = kills.survives_kills(functools.partial(job, inputs), runs, 7, seed=4)
    assert hits >= 7
    files = sorted(str(path) for path in kills.contents(runs / "whole"))
    assert len(files) == 2 and files[1] == "metrics.json", files
