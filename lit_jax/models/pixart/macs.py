"""Multiply-accumulates of a PixArt, for captions of the full length. L caption tokens."""

from __future__ import annotations

from lit_jax.models.attention.compressed import kept_tokens
from lit_jax.models.pixart.config import PixArtConfig, caption_tokens
from lit_jax.models.transformer.macs import backbone_macs, timestep_macs


def macs(config: PixArtConfig) -> dict[str, int]:
    """Return the MACs of a forward pass per image by component.

    Layers that compress keys and values attend to fewer of them; learned filters weigh every key
    and value once.
    """
    N, D, L = config.num_tokens, config.hidden_size, caption_tokens(config)
    total = backbone_macs(config)
    total["embedders"] += L * (config.caption_channels * D + D * D)
    if config.micro_condition:  # height, width and aspect ratio
        total["embedders"] += 3 * timestep_macs(D // 3)
    total["modulation"] = 6 * D * D
    total["cross_attention"] = config.depth * (2 * N * D * D + 2 * L * D * D + 2 * N * L * D)
    compression, layers = config.kv_compress_config, len(config.compressed_layers)
    if compression is not None:
        total["attention"] -= layers * 2 * N * (N - kept_tokens(config)) * D
        if compression.sampling == "conv":
            total["convolution"] += layers * 2 * N * D
    return total
