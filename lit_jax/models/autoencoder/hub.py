"""An AutoencoderKL as diffusers describes it."""

from __future__ import annotations

from typing import Any

from lit_jax.keymap.hub_entries import DIFFUSERS_FILE, DIFFUSERS_VERSION
from lit_jax.models.autoencoder.config import AutoencoderConfig


def hub_config(config: AutoencoderConfig) -> tuple[dict[str, Any], str]:
    """Return (config.json, name of the weight file) of an AutoencoderKL."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "scaling_factor": config.scaling_factor,
    }, DIFFUSERS_FILE
