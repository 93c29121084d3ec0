"""Entries of the config.json of diffusers that its diffusion transformers share."""

from __future__ import annotations

from typing import Any

from lit_jax.keymap.hub_entries import DIFFUSERS_VERSION


def backbone_entries(config: Any) -> dict[str, Any]:
    """Return the entries that both diffusion transformers of diffusers have."""
    return {
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.image_size[0],
        "patch_size": config.patch_size,
        "attention_bias": config.qkv_bias,
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
        # Its default for DiT is 1e-5, which is not what the official model computes.
        "norm_eps": 1e-6,
    }
