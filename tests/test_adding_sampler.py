"""Adding a sampler: a function with the times it visits, and a row of `SAMPLERS`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.config.protocol import Protocol
from lit_jax.diffusion import samplers
from support import tiny_runs
from support.sampling import sample


def one_step(
    denoiser: Any, process: Any, x_T: Any, noise_fn: Any, *, progress: Any = None, **options: Any
) -> Any:
    """Call the network once, at the last time, and return its estimate as the image."""
    time_B = np.full(len(x_T), process.timestep_map[-1])
    return denoiser(x_T, time_B)[..., : x_T.shape[-1]]


def test_a_sampler_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = samplers.Sampler(one_step, lambda process: process.timestep_map[-1:])
    monkeypatch.setitem(samplers.SAMPLERS, "one_step", row)
    model = tiny_runs.save_model(tmp_path / "dit")
    out = sample(model, tmp_path / "s", 3, Protocol("one_step", "4", cfg_scale=2.0))
    record = json.loads((out / "sample.json").read_text())
    assert record["protocol"]["sampler"] == "one_step" and record["network_evaluations"] == 2
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (3, 8, 8, 1) and len({image.tobytes() for image in images}) == 3
