"""CLEAR's windows in a softmax model that was not trained for them: its parameters stay as they
are, each token just sees less."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.models.attention.window import Pool, check_pooling
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig

C = TypeVar("C", bound=DenoiserConfig)


def with_windows(
    config: C, window_size: int, down_factor: int, grid: tuple[int, int], model: str
) -> C:
    """Return `config` with attention in circles of radius `window_size` and, unless `down_factor`
    is 0, pooled tokens; `config` itself when both are 0. `grid` counts the tokens of the images,
    `model` is the folder for messages.

    Raises ValueError for a model that has no plain softmax attention and for a factor that does not
    divide the grid.
    """
    if not window_size and not down_factor:
        return config
    if not window_size:
        raise ValueError(
            f"--down_factor {down_factor} pools the tokens outside of windows; give their"
            " --window_size, too"
        )
    if config.mixer != "softmax":
        raise ValueError(
            f"--window_size {window_size} is for softmax models, but {model} has the mixer"
            f" {config.mixer!r}; leave it out"
        )
    if isinstance(config, PixArtConfig) and config.compressed_layers:
        raise ValueError(
            f"--window_size {window_size} needs the keys of all tokens, but {model} compresses them"
            f" in {len(config.compressed_layers)} layers; leave it out"
        )
    fields: dict[str, Any] = {"window_size": window_size, "down_factor": down_factor or None}
    windows = dataclasses.replace(config, mixer="window", **fields)
    check_pooling(grid, fields["down_factor"])
    return windows


def with_averages(config: DenoiserConfig, params: Any, mesh: Mesh) -> Any:
    """Return `params` with weights for the pooled tokens of `config`, averages, where there are
    none."""
    factor = getattr(config, "down_factor", None)
    attention = params["blocks"]["attn"]
    if factor is None or "pool" in attention:
        return params
    kernel = jnp.broadcast_to(Pool(factor).kernel[...], (config.depth, factor, factor))
    pool = {"kernel": jax.device_put(kernel, sharding.replicated(mesh))}
    return params | {"blocks": params["blocks"] | {"attn": attention | {"pool": pool}}}


def windows_of(config: DenoiserConfig, window_size: int) -> dict[str, Any] | None:
    """Return what a record says of windows that were asked for; None when none were."""
    if not window_size:
        return None
    return {"window_size": window_size, "down_factor": getattr(config, "down_factor", None)}
