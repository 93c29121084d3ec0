"""A DiG through the jobs: trained on the digits, sampled from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_jax.commands.train import job
from lit_jax.config import ModelSpec
from lit_jax.config.protocol import Protocol
from lit_jax.training.metrics import read_trace
from support import tiny_runs
from support.sampling import sample


@pytest.mark.slow
def test_dig_trains_and_samples(data_dir: Path, tmp_path: Path) -> None:
    config = tiny_runs.run_config(
        data_dir,
        total_steps=1,
        model=ModelSpec(name="DiG", overrides=tiny_runs.SIZE),
    )
    job.train(config, tmp_path / "run", lambda text: None)
    losses = [line["loss"] for line in read_trace(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 1 and np.isfinite(losses).all()
    protocol = Protocol(steps="ddim2", cfg_scale=1.5)
    sample(tmp_path / "run", tmp_path / "s", 3, protocol, log=lambda text: None)
    with np.load(tmp_path / "s" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (3, 8, 8, 1)
