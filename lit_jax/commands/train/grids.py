"""The sample grids of a training run, from labels or from captions of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.commands.train.data import DataInfo, open_data
from lit_jax.config import TrainConfig
from lit_jax.config.protocol import Protocol
from lit_jax.data.stream import BatchStream
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import with_params
from lit_jax.models.registry import DenoiserConfig, family_of
from lit_jax.sampling.grids import save_grid
from lit_jax.sampling.labels import assign_labels
from lit_jax.sampling.sampler import (
    LabelBatches,
    check_protocol,
    fitting_batch,
    make_sampler,
    place_everywhere,
    prompt_keys,
)

Vae = tuple[Any, Any]
"""Configuration and parameters, the latter on every device of a mesh."""

DrawGrid = Callable[[Any, Path], np.ndarray | None]
"""(parameters, file) -> the grid uint8 [height, width, C] as it was saved, or None for samples that
are not finite."""


def check_grids(config: TrainConfig, student: DenoiserConfig, info: DataInfo, mesh: Mesh) -> None:
    """Raise ValueError for a sampling protocol that the model cannot follow, and for more images
    than there are captions."""
    check_protocol(protocol_of(config, student), student)
    if family_of(student).condition == "caption":
        captions(config, student, info, mesh)


def protocol_of(config: TrainConfig, student: Any) -> Protocol:
    """Return the protocol of the grids."""
    guided = family_of(student).condition == "caption" or student.null_label is not None
    return config.sample.protocol(config.seed, guided)


def grid_drawer(
    config: TrainConfig, student: DenoiserConfig, info: DataInfo, mesh: Mesh, vae: Vae | None
) -> DrawGrid:
    """Return the function that draws the grids of a run. It compiles with the first one."""
    if family_of(student).condition == "caption":
        assert vae is not None  # captions come with latents
        return _from_captions(config, student, info, mesh, vae)
    return _from_labels(config, student, mesh, vae)


def _from_labels(config: TrainConfig, student: Any, mesh: Mesh, vae: Vae | None) -> DrawGrid:
    count, protocol = config.sample.count, protocol_of(config, student)
    network, vae_params = vae or (None, None)
    size = fitting_batch(count, count, sharding.batch_devices(mesh))
    label_N = assign_labels(student, (), count)
    sampler = make_sampler(student, protocol, mesh, vae=network)

    def draw(params: Any, path: Path) -> np.ndarray | None:
        images = LabelBatches(
            sampler, params, vae_params, protocol.seed, label_N, student.null_label, size, mesh
        )
        ((_, x_NxHxWxC, decoded),) = images.batches(0, count)
        return save_grid(x_NxHxWxC if decoded is None else decoded, path)

    return draw


def _from_captions(
    config: TrainConfig, student: Any, info: DataInfo, mesh: Mesh, vae: Vae
) -> DrawGrid:
    """Draw for the captions of the first examples of the data, always the same ones."""
    stream = captions(config, student, info, mesh)
    batch = next(stream)
    stream.close()
    placed = place_everywhere({name: batch[name] for name in ("tokens", "mask")}, mesh)
    cond = TextCondition(placed["tokens"], placed["mask"])
    protocol = protocol_of(config, student)
    sampler = make_sampler(student, protocol, mesh, batch["moments"].shape[1:3], vae[0])
    key_B = prompt_keys(protocol.seed, ["grid"] * len(batch["mask"]), range(len(batch["mask"])))

    def draw(params: Any, path: Path) -> np.ndarray | None:
        uncond = with_params(student, params).null_condition(cond)
        images = sampler(params, vae[1], key_B, cond, uncond)[1]
        return save_grid(np.asarray(images)[: config.sample.count], path)

    return draw


def captions(
    config: TrainConfig, student: DenoiserConfig, info: DataInfo, mesh: Mesh
) -> BatchStream:
    """Return the data of a run, as many examples at a time as a grid needs; nothing is read yet."""
    count = fitting_batch(config.sample.count, config.sample.count, mesh.size)
    return open_data(config, student, info, count)
