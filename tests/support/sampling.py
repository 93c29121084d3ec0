"""Calls of the sample job and of its sampler, as the tests make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lit_jax.commands.sample import job
from lit_jax.config.protocol import LABELS, Protocol
from lit_jax.config.sample import SampleConfig
from lit_jax.sampling.sampler import LabelBatches, make_sampler


def sample(
    model: Path | str,
    out: Path | str,
    num_samples: int,
    protocol: Protocol = LABELS,
    *,
    log: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Path:
    """Runs the job; `settings` are further fields of SampleConfig, paths or text."""
    plain: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    return job.sample(SampleConfig(str(model), str(out), num_samples, protocol, **plain), log)


def draw_images(
    config: Any,
    params: Any,
    protocol: Protocol,
    label_N: np.ndarray | None,
    count: int,
    mesh: Mesh,
    batch_size: int,
) -> np.ndarray:
    """Images 0 .. count-1 as the sampler draws them, float32, not decoded."""
    draw = make_sampler(config, protocol, mesh)
    images = LabelBatches(
        draw, params, None, protocol.seed, label_N, config.null_label, batch_size, mesh
    )
    return np.concatenate([x_BxHxWxC for _, x_BxHxWxC, _ in images.batches(0, count)])
