"""Closed-form cost of a forward pass, in multiply-accumulates (MACs) per image.

N tokens, D hidden size, h heads, K convolution kernel. The DiT paper prints these as "Gflops".
There are two counts of linear attention: `attention_macs`, as the LiT paper prints it, to compare
with the paper; and what Algorithm 1 multiplies, which `forward_macs` and `train_step_flops` use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from lit_jax.config import DiTConfig


def softmax_attention_macs(config: DiTConfig) -> int:
    """4 N D^2 + 2 N^2 D per layer (LiT paper, Eq. 4, MHSA)."""
    N, D = config.num_tokens, config.hidden_size
    return 4 * N * D * D + 2 * N * N * D


def linear_attention_macs(config: DiTConfig, state_products: int) -> int:
    """4 N D^2 + N D + F N D^2 / h + K^2 N D per layer, with F = `state_products`.

    Algorithm 1 has F = 2: the state of h matrices (D/h)^2 is summed up from N tokens and read by N
    queries. Eq. 4 of the LiT paper (MHLA) prints F = 3. N D is the normaliser.
    """
    N, D = config.num_tokens, config.hidden_size
    state = state_products * N * D * D // config.num_heads
    convolution = (config.kernel_size or 0) ** 2 * N * D
    return 4 * N * D * D + N * D + state + convolution


_PRINTED = functools.partial(linear_attention_macs, state_products=3)
_MULTIPLIED = functools.partial(linear_attention_macs, state_products=2)

# Mixer -> MACs per layer: as Eq. 4 prints them, and as the algorithm multiplies.
ATTENTION_MACS: dict[str, tuple[Callable[[DiTConfig], int], Callable[[DiTConfig], int]]] = {
    "softmax": (softmax_attention_macs, softmax_attention_macs),
    "linear": (_PRINTED, _MULTIPLIED),
    "focused": (_PRINTED, _MULTIPLIED),
}


def attention_macs(config: DiTConfig) -> int:
    """MACs of all self-attention layers for one image, as Eq. 4 of the LiT paper counts them."""
    printed, _ = ATTENTION_MACS[config.mixer]
    return config.depth * printed(config)


def multiplied_attention_macs(config: DiTConfig) -> int:
    """MACs that all self-attention layers really take for one image, convolution included."""
    _, multiplied = ATTENTION_MACS[config.mixer]
    return config.depth * multiplied(config)


def forward_macs(config: DiTConfig) -> int:
    """MACs of a forward pass per image: embedders, attention (as multiplied), MLP, modulation,
    final layer."""
    N, D = config.num_tokens, config.hidden_size
    patch = config.patch_size**2
    embed = N * patch * config.in_channels * D + 256 * D + D * D
    block = 2 * N * D * config.mlp_width + 6 * D * D
    final = 2 * D * D + N * D * patch * config.out_channels
    return embed + multiplied_attention_macs(config) + config.depth * block + final


def train_step_flops(config: DiTConfig, batch_size: int, teacher: DiTConfig | None = None) -> float:
    """Floating-point operations of one training step: forward and backward (3 x) of the student,
    forward of the teacher; two operations per MAC. Recomputation by remat is not counted."""
    macs = 3 * forward_macs(config) + (forward_macs(teacher) if teacher is not None else 0)
    return 2.0 * macs * batch_size
