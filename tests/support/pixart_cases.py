"""Golden, analytic and tiny PixArts: how they are loaded, and batches for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import Params, abstract_params, apply_fn
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.pixart.model import position_table
from support.attention_cases import random_like, sine_input
from support.golden_cases import COPIES, golden_folders, load_arrays, load_state_dict

# What neither shapes nor the position table tell, per golden case.
CASES: dict[str, dict[str, Any]] = {
    "pixart_base": {"num_heads": 3},
    "pixart_ms": {"num_heads": 3},
    "pixart_ms_kvcompress": {"num_heads": 3},
    "pixart_ms_micro": {"num_heads": 3},
    "lit_pixart_ms": {"cross_num_heads": 4},
}


def golden_sources_of(*cases: str, with_array: str | None = None) -> list[Any]:
    """pytest parameters (folder, case) of the cases, in every folder that has them (and the array
    `with_array`)."""
    found = []
    for case in cases:
        for folder in golden_folders():
            if not (folder / f"{case}.npz").exists():
                continue
            if with_array is None or with_array in golden_arrays(folder, case):
                where = "copy" if folder == COPIES else "full"
                found.append(pytest.param(folder, case, id=f"{case}-{where}"))
    assert found, f"none of {cases} is in {golden_folders()}"
    return found


@functools.cache
def golden_arrays(folder: Path, case: str) -> dict[str, np.ndarray]:
    return load_arrays(folder, case)


@functools.cache
def golden_state(folder: Path, case: str) -> dict[str, np.ndarray]:
    """The official weights in torch layout."""
    return load_state_dict(folder, case)


@functools.cache
def golden_model(folder: Path, case: str) -> tuple[PixArtConfig, Params]:
    """The converted model, its architecture detected."""
    state = golden_state(folder, case)
    config = detect_config(state, None, CASES[case])
    assert isinstance(config, PixArtConfig)
    return config, import_params(state, config)[0]


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` at half the compile time: these networks are too small to be worth optimising."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def forward(config: PixArtConfig) -> Callable[..., jax.Array]:
    """The compiled network, one per configuration."""
    return quick_jit(apply_fn(config))


def filled(build: Callable[[], Any], params: Params) -> Any:
    """The module that `build` makes, with these parameters."""
    graphdef, state = nnx.split(nnx.eval_shape(build))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def condition(
    arrays: dict[str, np.ndarray], tokens: np.ndarray, mask: np.ndarray | None
) -> TextCondition:
    """A condition of a golden case from tokens [B, 1, L, C], with its image sizes if it has any."""
    sizes = [arrays.get(f"data_info/{name}") for name in ("img_hw", "aspect_ratio")]
    return TextCondition(tokens[:, 0], mask, *sizes)


TINY: dict[str, Any] = {
    "input_size": 8,
    "in_channels": 3,
    "hidden_size": 24,
    "depth": 3,
    "num_heads": 2,
    "caption_channels": 10,
    "model_max_length": 5,
    "kernel_size": 3,
}


def tiny(**fields: Any) -> PixArtConfig:
    """A PixArt of width 24 and depth 3 with two heads."""
    return PixArtConfig(**(TINY | fields))


def batch(
    config: PixArtConfig, size: tuple[int, int] | None = None
) -> tuple[jax.Array, jax.Array, TextCondition]:
    """Two images, timesteps and captions: three tokens of five, and two that are no prefix."""
    H, W = size or config.image_size
    x = sine_input((2, H, W, config.in_channels), 0.3)
    tokens = sine_input((2, 5, config.caption_channels), 0.7)
    mask = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 0, 1]])
    sizes: tuple[Any, ...] = ()
    if config.micro_condition:
        sizes = (jnp.array([[512.0, 768.0], [1024.0, 256.0]]), jnp.array([[0.67], [4.0]]))
    return jnp.asarray(x), jnp.array([3, 777]), TextCondition(jnp.asarray(tokens), mask, *sizes)


@functools.cache
def random_params(config: PixArtConfig) -> Params:
    return random_like(abstract_params(config))


def state_like(config: PixArtConfig, layout: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """A random checkpoint of `config` in one of its layouts, with the table an official one has."""
    rng = np.random.default_rng(seed)
    chosen = layouts_for(config)[layout]
    state = {
        key: rng.standard_normal(slot.source_shape).astype(np.float32)
        for key, slot in slots(chosen, config).items()
    }
    if chosen.reason_to_drop("pos_embed"):
        state["pos_embed"] = position_table(config)[None]
    return state
