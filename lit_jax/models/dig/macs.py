"""Multiply-accumulates of a DiG."""

from __future__ import annotations

from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.transformer.macs import backbone_macs


def macs(config: DiGConfig) -> dict[str, int]:
    """Return the MACs of a forward pass per image by component.

    The gated MLP has three matrices. The filters follow the block: K^2 N D per layer. The final
    layer of a DiG without labels is not modulated.
    """
    N, D, total = config.num_tokens, config.hidden_size, backbone_macs(config, mlp_matrices=3)
    total["modulation"] = config.depth * 6 * D * D
    total["skip"] = config.skips * 2 * N * D * D
    if config.num_classes:
        total["final_layer"] += 2 * D * D
    return total
