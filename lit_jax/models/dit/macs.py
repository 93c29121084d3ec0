"""Multiply-accumulates of a DiT, LiT or CLEAR."""

from __future__ import annotations

from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.transformer.macs import backbone_macs


def macs(config: DiTConfig) -> dict[str, int]:
    """Return the MACs of a forward pass per image by component."""
    D, total = config.hidden_size, backbone_macs(config)
    total["modulation"] = config.depth * 6 * D * D
    total["final_layer"] += 2 * D * D
    return total
