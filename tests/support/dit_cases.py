"""A tiny DiT or LiT, its compiled forward pass and a batch for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import apply_fn
from lit_jax.models.registry import model_config
from support.attention_cases import sine_input

TINY = {"input_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
TINY |= {"num_classes": 5, "kernel_size": 3}


def tiny(family: str = "LiT", **fields: Any) -> DiTConfig:
    return model_config(family, **(TINY | fields))


@functools.cache
def forward(config: DiTConfig) -> Callable[..., jax.Array]:
    return jax.jit(apply_fn(config))


def batch(config: DiTConfig) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Two images, timesteps and labels (the second one null, where there is a null class)."""
    x = sine_input((2, *config.image_size, config.in_channels), 0.3)
    labels = jnp.array([1, config.null_label or 0]) if config.num_classes else None
    return jnp.asarray(x), jnp.array([3, 777]), labels
