"""A DiT as diffusers describes it."""

from __future__ import annotations

from typing import Any

from lit_jax.keymap.hub_entries import DIFFUSERS_FILE
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.transformer.hub import backbone_entries


def hub_config(config: DiTConfig) -> tuple[dict[str, Any], str]:
    """Return (config.json, name of the weight file) of a DiTTransformer2DModel."""
    entries = {
        "_class_name": "DiTTransformer2DModel",
        "num_embeds_ada_norm": config.num_classes,
        "norm_type": "ada_norm_zero",
    }
    return backbone_entries(config) | entries, DIFFUSERS_FILE
