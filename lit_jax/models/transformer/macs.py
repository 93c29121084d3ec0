"""Closed-form multiply-accumulates (MACs) per image that all diffusion transformers share.

N tokens, D hidden size, p patch size, C channels. Only products are counted; softmax, norms,
feature maps, biases and sums are left out, as in the papers."""

from __future__ import annotations

from typing import Any

from lit_jax.models.attention import mixer_class

COMPONENTS = (
    *("embedders", "projections", "attention", "convolution", "cross_attention", "mlp"),
    *("modulation", "skip", "final_layer"),
)
"""Parts of a cost. "attention" is the core of the self-attention, between its projections;
"convolution" are filters over the token grid; "modulation" makes the shifts, scales and gates of
blocks; "skip" are the connections of a U-shaped DiG."""

TIMESTEP_WIDTH = 256
"""Sinusoids of a timestep before its MLP."""

BLOCK_COMPONENTS = (
    (r"^(x|t|y|csize|ar)_embedder/", "embedders"),
    (r"^final_layer/", "final_layer"),
    (r"/(dwc|pool)/|^kv_compress/", "convolution"),
    (r"^skip/", "skip"),
    (r"/cross_attn/", "cross_attention"),
    (r"/attn/", "projections"),
    (r"/mlp/", "mlp"),
    (r"/adaln/|^t_block/|/scale_shift_table$", "modulation"),
)
"""Pattern of a parameter's path -> component; the first that matches counts."""


def timestep_macs(width: int) -> int:
    """Return the MACs of the MLP of a timestep."""
    return TIMESTEP_WIDTH * width + width * width


def backbone_macs(config: Any, mlp_matrices: int = 2) -> dict[str, int]:
    """Return the MACs by component without those of the condition: patches, mixers, MLPs (of two or
    three matrices) and the final projection."""
    N, D, patch = config.num_tokens, config.hidden_size, config.patch_size**2
    macs = dict.fromkeys(COMPONENTS, 0)
    for name, count in mixer_class(config.mixer).macs(config).items():
        if name not in macs:
            raise ValueError(f"macs of mixer {config.mixer!r} has {name!r}, not in {COMPONENTS}")
        macs[name] = config.depth * count
    macs["embedders"] = N * patch * config.in_channels * D + timestep_macs(D)
    macs["mlp"] = config.depth * mlp_matrices * N * D * config.mlp_width
    macs["final_layer"] = N * D * patch * config.out_channels
    return macs
