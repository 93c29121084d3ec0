"""Autoencoders from the golden set, tiny ones, and compiled calls, for all tests of them."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.autoencoder.model import AutoencoderKL
from lit_jax.models.functional import Params, abstract_params, pure_params, with_params
from support.attention_cases import random_like
from support.golden_cases import COPIES, golden_sources

GOLDEN = {
    f"{case}-{source.id}": (case, *source.values)
    for case in ("vae_sd", "vae_sdxl")
    for source in golden_sources(f"{case}.npz")
}
"""Test id -> case and folder."""

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def official(case: str, folder: Path = COPIES) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """State dict and config.json of a golden case."""
    state = load_file(folder / case / "diffusion_pytorch_model.safetensors")
    return state, json.loads((folder / case / "config.json").read_text())


def old_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as files before 2023 call them."""
    renamed = {}
    for key, value in state.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[key] = value
    return renamed


@functools.cache
def golden_model(case: str, folder: Path = COPIES) -> AutoencoderKL:
    state, hub = official(case, folder)
    return model_of(state, hub)


def model_of(state: dict[str, np.ndarray], hub: dict[str, Any]) -> AutoencoderKL:
    config = detect_config(state, hub=hub)
    model: AutoencoderKL = with_params(config, import_params(state, config)[0])
    return model


def params_of(model: AutoencoderKL) -> Params:
    return pure_params(nnx.state(model, nnx.Param))


def in_bfloat16(model: AutoencoderKL) -> AutoencoderKL:
    config = dataclasses.replace(model.config, dtype="bfloat16")
    half: AutoencoderKL = with_params(config, params_of(model))
    return half


@functools.cache
def tiny(**fields: Any) -> AutoencoderKL:
    """Two levels; every parameter drawn, none negligible."""
    small = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1}
    config = AutoencoderConfig(**(small | fields))
    model: AutoencoderKL = with_params(config, random_like(abstract_params(config)))
    return model


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@jax.jit
def encode(model: AutoencoderKL, images: jax.Array) -> jax.Array:
    return model.encode(images)


@jax.jit
def decode(model: AutoencoderKL, latents: jax.Array) -> jax.Array:
    return model.decode(latents)
