"""Closed-form cost of a forward pass, in multiply-accumulates (MACs) per image.

N tokens, D hidden size, h heads, K convolution kernel. The DiT paper prints these as "Gflops".
"""

from __future__ import annotations

from collections.abc import Callable

from lit_jax.config import DiTConfig


def softmax_attention_macs(config: DiTConfig) -> int:
    """4 N D^2 + 2 N^2 D per layer (LiT paper, Eq. 4, MHSA)."""
    N, D = config.num_tokens, config.hidden_size
    return 4 * N * D * D + 2 * N * N * D


def linear_attention_macs(config: DiTConfig) -> int:
    """4 N D^2 + N D + 3 N D^2 / h + K^2 N D per layer (LiT paper, Eq. 4, MHLA).

    The factor 3 is the printed one, kept so that the paper's figures are reproduced; Algorithm 1
    itself multiplies 2 N D^2 / h times.
    """
    N, D = config.num_tokens, config.hidden_size
    convolution = (config.kernel_size or 0) ** 2 * N * D
    return 4 * N * D * D + N * D + 3 * N * D * D // config.num_heads + convolution


ATTENTION_MACS: dict[str, Callable[[DiTConfig], int]] = {
    "softmax": softmax_attention_macs,
    "linear": linear_attention_macs,
    "focused": linear_attention_macs,
}


def attention_macs(config: DiTConfig) -> int:
    """MACs of all self-attention layers for one image."""
    return config.depth * ATTENTION_MACS[config.mixer](config)


def forward_macs(config: DiTConfig) -> int:
    """MACs of a forward pass per image: embedders, attention, MLP, modulation, final layer."""
    N, D = config.num_tokens, config.hidden_size
    patch = config.patch_size**2
    embed = N * patch * config.in_channels * D + 256 * D + D * D
    block = 2 * N * D * config.mlp_width + 6 * D * D
    final = 2 * D * D + N * D * patch * config.out_channels
    return embed + attention_macs(config) + config.depth * block + final


def train_step_flops(config: DiTConfig, batch_size: int, teacher: DiTConfig | None = None) -> float:
    """Floating-point operations of one training step: forward and backward (3 x) of the student,
    forward of the teacher; two operations per MAC. Recomputation by remat is not counted."""
    macs = 3 * forward_macs(config) + (forward_macs(teacher) if teacher is not None else 0)
    return 2.0 * macs * batch_size
