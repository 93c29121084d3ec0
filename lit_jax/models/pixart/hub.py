"""A PixArt as diffusers describes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lit_jax.keymap.hub_entries import DIFFUSERS_FILE
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.transformer.hub import backbone_entries
from lit_jax.models.transformer.roles import CAPTIONED


def hub_config(config: PixArtConfig) -> tuple[dict[str, Any], str]:
    """Return (config.json, name of the weight file) of a PixArtTransformer2DModel."""
    entries = {
        "_class_name": "PixArtTransformer2DModel",
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "caption_channels": config.caption_channels,
        "cross_attention_dim": config.hidden_size,
        "interpolation_scale": config.pe_interpolation,
        "use_additional_conditions": config.micro_condition,
    }
    return backbone_entries(config) | entries, DIFFUSERS_FILE


def as_written(config: PixArtConfig, omitted: Sequence[str]) -> PixArtConfig:
    """Return the configuration of an exported file: diffusers has no place for a null caption."""
    if CAPTIONED.null_caption in omitted:
        return dataclasses.replace(config, model_max_length=None)
    return config
