"""Closed-form cost of a forward pass, in multiply-accumulates (MACs) per image.

N tokens, D hidden size, h heads, K convolution kernel, L caption tokens. The DiT paper prints these
as "Gflops". There are two counts of linear attention: `attention_macs`, as the LiT paper prints it,
to compare with the paper; and what Algorithm 1 multiplies, which `forward_macs` and
`train_step_flops` use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from lit_jax.config import DenoiserConfig, LabelledConfig, MixerConfig, PixArtConfig


def softmax_attention_macs(config: DenoiserConfig) -> int:
    """4 N D^2 + 2 N^2 D per layer (LiT paper, Eq. 4, MHSA)."""
    N, D = config.num_tokens, config.hidden_size
    return 4 * N * D * D + 2 * N * N * D


def linear_attention_macs(config: DenoiserConfig, state_products: int) -> int:
    """4 N D^2 + N D + F N D^2 / h + K^2 N D per layer, with F = `state_products`.

    Algorithm 1 has F = 2: the state of h matrices (D/h)^2 is summed up from N tokens and read by N
    queries. Eq. 4 of the LiT paper (MHLA) prints F = 3. N D is the normaliser.
    """
    N, D = config.num_tokens, config.hidden_size
    state = state_products * N * D * D // config.num_heads
    assert isinstance(config, MixerConfig)
    convolution = (config.kernel_size or 0) ** 2 * N * D
    return 4 * N * D * D + N * D + state + convolution


Cost = Callable[[DenoiserConfig], int]

_PRINTED = functools.partial(linear_attention_macs, state_products=3)
_MULTIPLIED = functools.partial(linear_attention_macs, state_products=2)

# Mixer -> MACs per layer: as Eq. 4 prints them, and as the algorithm multiplies.
ATTENTION_MACS: dict[str, tuple[Cost, Cost]] = {
    "softmax": (softmax_attention_macs, softmax_attention_macs),
    "linear": (_PRINTED, _MULTIPLIED),
    "focused": (_PRINTED, _MULTIPLIED),
}


def attention_macs(config: DenoiserConfig) -> int:
    """MACs of all self-attention layers for one image, as Eq. 4 of the LiT paper counts them."""
    printed, _ = ATTENTION_MACS[config.mixer]
    return config.depth * printed(config)


def multiplied_attention_macs(config: DenoiserConfig) -> int:
    """MACs that all self-attention layers really take for one image, convolution included.

    A layer of PixArt that compresses keys and values by s per axis attends to N / s^2 of them.
    """
    _, multiplied = ATTENTION_MACS[config.mixer]
    total = config.depth * multiplied(config)
    if isinstance(config, PixArtConfig) and config.kv_compress_config is not None:
        N, D = config.num_tokens, config.hidden_size
        kept = N // config.kv_compress_config.scale_factor**2
        total -= len(config.compressed_layers) * 2 * N * (N - kept) * D
    return total


def forward_macs(config: DenoiserConfig) -> int:
    """MACs of a forward pass per image of the nominal size: embedders, attention (as multiplied),
    MLP, modulation, final layer; for PixArt, captions of the full length and cross-attention."""
    N, D = config.num_tokens, config.hidden_size
    patch = config.patch_size**2
    embed = N * patch * config.in_channels * D + 256 * D + D * D
    mlp = 2 * N * D * config.mlp_width
    unpatch = N * D * patch * config.out_channels
    attention = multiplied_attention_macs(config)
    if isinstance(config, LabelledConfig):  # modulation: a projection per block, and a final one
        return embed + attention + config.depth * (mlp + 6 * D * D) + 2 * D * D + unpatch
    L = config.model_max_length or 300
    caption = L * (config.caption_channels * D + D * D)
    cross = 2 * N * D * D + 2 * L * D * D + 2 * N * L * D
    return embed + 6 * D * D + caption + attention + config.depth * (mlp + cross) + unpatch


def train_step_flops(
    config: DenoiserConfig, batch_size: int, teacher: DenoiserConfig | None = None
) -> float:
    """Floating-point operations of one training step: forward and backward (3 x) of the student,
    forward of the teacher; two operations per MAC. Recomputation by remat is not counted."""
    macs = 3 * forward_macs(config) + (forward_macs(teacher) if teacher is not None else 0)
    return 2.0 * macs * batch_size
