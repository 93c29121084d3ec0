"""The sample grids of a training run, from labels or from captions of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.commands.sample.checks import check
from lit_jax.commands.train.data import DataInfo, open_data
from lit_jax.config import TrainConfig
from lit_jax.data.stream import BatchStream
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import with_params
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig
from lit_jax.sampling.drawing import (
    DECODE_BATCH,
    Protocol,
    Vae,
    decoder,
    draw_grid,
    fitting_batch,
    place_everywhere,
    save_grid,
)
from lit_jax.sampling.text_drawing import (
    TextProtocol,
    check_protocol,
    make_text_sampler,
    prompt_keys,
)

DrawGrid = Callable[[Any, Path], np.ndarray | None]
"""(parameters, file) -> the grid uint8 [height, width, C] as it was saved, or None for samples that
are not finite."""


def check_grids(config: TrainConfig, student: DenoiserConfig, info: DataInfo, mesh: Mesh) -> None:
    """Raise ValueError for a sampling protocol that the model cannot follow, and for more images
    than there are captions."""
    if isinstance(student, PixArtConfig):
        check_protocol(text_protocol(config), student)
        captions(config, student, info, mesh)
    else:
        check(student, label_protocol(config, student), (), config.sample.count, mesh.size)


def grid_drawer(
    config: TrainConfig, student: DenoiserConfig, info: DataInfo, mesh: Mesh, vae: Vae | None
) -> DrawGrid:
    """Return what draws the grids of a run. Everything is compiled with the first one."""
    if isinstance(student, PixArtConfig):
        assert vae is not None  # captions come with latents
        return _from_captions(config, student, info, mesh, vae)
    protocol = label_protocol(config, student)

    def draw(params: Any, path: Path) -> np.ndarray | None:
        return draw_grid(student, params, protocol, config.sample.count, mesh, path, vae)

    return draw


def _from_captions(
    config: TrainConfig, student: PixArtConfig, info: DataInfo, mesh: Mesh, vae: Vae
) -> DrawGrid:
    """Draw for the captions of the first examples of the data, always the same ones."""
    stream = captions(config, student, info, mesh)
    batch = next(stream)
    stream.close()
    placed = place_everywhere({name: batch[name] for name in ("tokens", "mask")}, mesh)
    cond = TextCondition(placed["tokens"], placed["mask"])
    protocol = text_protocol(config)
    latent_size = batch["moments"].shape[1:3]
    sampler = make_text_sampler(student, protocol, mesh, latent_size)
    decode = jax.jit(decoder(vae[0], mesh, DECODE_BATCH), out_shardings=sharding.replicated(mesh))
    key_B = prompt_keys(protocol.seed, ["grid"] * len(batch["mask"]), range(len(batch["mask"])))

    def draw(params: Any, path: Path) -> np.ndarray | None:
        null_cond = with_params(student, params).null_condition(cond)
        images = decode(vae[1], sampler(params, key_B, cond, null_cond))
        return save_grid(np.asarray(images)[: config.sample.count], path)

    return draw


def captions(config: TrainConfig, student: PixArtConfig, info: DataInfo, mesh: Mesh) -> BatchStream:
    """Return the data of a run, as many examples at a time as a grid needs; nothing is read yet."""
    count = fitting_batch(config.sample.count, config.sample.count, mesh.size)
    return open_data(config, student, info, count)


def label_protocol(config: TrainConfig, student: DenoiserConfig) -> Protocol:
    """Return how the grids of a run are drawn: without guidance where the model has no null
    class."""
    assert not isinstance(student, PixArtConfig)
    settings = config.sample
    return Protocol(
        sampler=settings.sampler,
        steps=settings.steps,
        cfg_scale=1.0 if student.null_label is None else settings.cfg_scale,
        cfg_channels=settings.cfg_channels,
        seed=config.seed,
    )


def text_protocol(config: TrainConfig) -> TextProtocol:
    settings = config.sample
    return TextProtocol(
        sampler=settings.sampler,
        steps=settings.steps,
        cfg_scale=settings.cfg_scale,
        cfg_channels=settings.cfg_channels,
        seed=config.seed,
    )
