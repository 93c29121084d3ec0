"""CLEAR's windows in a softmax model that was not trained for them: its parameters stay as they
are, each token just sees less."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.models.attention.circle import check_pooling
from lit_jax.models.functional import with_parameter
from lit_jax.models.registry import DenoiserConfig, roles_of

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
    if layers := getattr(config, "compressed_layers", ()):
        raise ValueError(
            f"--window_size {window_size} needs the keys of all tokens, but {model} compresses them"
            f" in {len(layers)} layers; leave it out"
        )
    fields: dict[str, Any] = {"window_size": window_size, "down_factor": down_factor or None}
    check_pooling(grid, fields["down_factor"])
    return dataclasses.replace(config, mixer="window", **fields)


def with_averages(config: DenoiserConfig, params: Any, mesh: Mesh) -> Any:
    """Return `params` with weights for the pooled tokens of `config`, averages, where there are
    none."""
    factor = getattr(config, "down_factor", None)
    path = roles_of(config).pooled
    if factor is None or path in traverse_util.flatten_dict(params, sep="/"):
        return params
    kernel = np.full((config.depth, factor, factor), 1.0 / factor**2, np.float32)
    return with_parameter(params, path, jax.device_put(kernel, sharding.replicated(mesh)))


def windows_of(config: DenoiserConfig, window_size: int) -> dict[str, Any] | None:
    """Return what a record says of windows that were asked for; None when none were."""
    if not window_size:
        return None
    return {"window_size": window_size, "down_factor": getattr(config, "down_factor", None)}
