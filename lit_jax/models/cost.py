"""Closed-form cost of a forward pass, in multiply-accumulates (MACs) per image, and parameters.

N tokens, D hidden size, L caption tokens. The DiT paper prints MACs as "Gflops". There are two
counts of linear attention: `attention_macs`, as the LiT paper prints it, to compare with the paper;
and what Algorithm 1 multiplies, which everything else here uses.
"""

from __future__ import annotations

import re

import jax

from lit_jax.models import functional
from lit_jax.models.cost_attention import Macs, attention_components, printed_macs
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.layers import TimestepEmbedder
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig, LabelledConfig

COMPONENTS = (
    *("embedders", "projections", "attention", "convolution", "cross_attention", "mlp"),
    *("modulation", "skip", "final_layer"),
)
"""What a cost is split into. "attention" is the core of the self-attention, between its
projections; "convolution" are filters over the token grid; "modulation" makes the shifts, scales
and gates of blocks; "skip" are the connections of a U-shaped DiG."""


CAPTION_TOKENS = 300
"""Of a model that does not say how long its captions are."""


def attention_macs(config: DenoiserConfig) -> int:
    """Return MACs of all self-attention layers for one image, as Eq. 4 of the LiT paper counts
    them."""
    return config.depth * printed_macs(config)


def multiplied_attention_macs(config: DenoiserConfig) -> int:
    """Return MACs that all self-attention layers really take for one image, convolution
    included."""
    return sum(attention_components(config).values())


def caption_tokens(config: PixArtConfig) -> int:
    """Return L, of captions of the full length."""
    return config.model_max_length or CAPTION_TOKENS


def _timestep_macs(width: int) -> int:
    return TimestepEmbedder.WIDTH * width + width * width


def _mlp_macs(config: DenoiserConfig) -> int:
    """Return two products per layer; three in the gated MLP of DiG."""
    matrices = 3 if isinstance(config, DiGConfig) else 2
    return matrices * config.num_tokens * config.hidden_size * config.mlp_width


def _condition_macs(config: DenoiserConfig) -> Macs:
    """Return what turns time, labels or captions into modulations, and the cross-attention."""
    N, D = config.num_tokens, config.hidden_size
    if isinstance(config, LabelledConfig):
        return {"embedders": _timestep_macs(D), "modulation": config.depth * 6 * D * D}
    L = caption_tokens(config)
    embedders = _timestep_macs(D) + L * (config.caption_channels * D + D * D)
    if config.micro_condition:  # height, width and aspect ratio
        embedders += 3 * _timestep_macs(D // 3)
    cross = 2 * N * D * D + 2 * L * D * D + 2 * N * L * D
    return {
        "embedders": embedders,
        "modulation": 6 * D * D,
        "cross_attention": config.depth * cross,
    }


def forward_components(config: DenoiserConfig) -> Macs:
    """Return MACs of a forward pass per image of the nominal size, by COMPONENTS; for PixArt with
    captions of the full length."""
    N, D = config.num_tokens, config.hidden_size
    patch = config.patch_size**2
    macs = dict.fromkeys(COMPONENTS, 0) | attention_components(config) | _condition_macs(config)
    macs["embedders"] += N * patch * config.in_channels * D
    macs["mlp"] = config.depth * _mlp_macs(config)
    macs["final_layer"] = N * D * patch * config.out_channels
    if isinstance(config, DiGConfig):
        macs["skip"] = config.skips * 2 * N * D * D
    # Only the final layer of a DiG without labels is not modulated.
    if isinstance(config, DiTConfig) or (isinstance(config, DiGConfig) and config.num_classes):
        macs["final_layer"] += 2 * D * D
    return macs


def forward_macs(config: DenoiserConfig) -> int:
    """Return MACs of a forward pass per image of the nominal size, attention as multiplied."""
    return sum(forward_components(config).values())


def train_step_flops(
    config: DenoiserConfig, batch_size: int, teacher: DenoiserConfig | None = None
) -> float:
    """Return floating-point operations of one training step: forward and backward (3 x) of the
    student, forward of the teacher; two operations per MAC. Recomputation by remat is not counted.
    """
    macs = 3 * forward_macs(config) + (forward_macs(teacher) if teacher is not None else 0)
    return 2.0 * macs * batch_size


# Pattern of a parameter's path -> component; the first that matches counts.
PARAMETER_COMPONENTS = (
    (r"^(x|t|y|csize|ar)_embedder/", "embedders"),
    (r"^final_layer/", "final_layer"),
    (r"/(dwc|pool)/|^kv_compress/", "convolution"),
    (r"^skip/", "skip"),
    (r"/cross_attn/", "cross_attention"),
    (r"/attn/", "projections"),
    (r"/mlp/", "mlp"),
    (r"/adaln/|^t_block/|/scale_shift_table$", "modulation"),
)


def parameter_components(config: DenoiserConfig) -> dict[str, int]:
    """Return parameters by COMPONENTS, from the shapes of the network itself. Everything inside a
    mixer but its filters counts as "projections", its norms, scales and position tables too."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for path, leaf in jax.tree.leaves_with_path(functional.abstract_params(config)):
        name = "/".join(str(key.key) for key in path)
        counts[next(c for pattern, c in PARAMETER_COMPONENTS if re.search(pattern, name))] += (
            leaf.size
        )
    return counts
