"""Closed-form cost of one layer of every mixer, in multiply-accumulates (MACs) per image.

N tokens on an R x C grid, D hidden size, h heads, K convolution kernel, M attended tokens. A mixer
is a row of MIXER_MACS, which says what its equations multiply; PRINTED_MACS are the counts of
linear attention that the LiT paper prints, to compare with the paper.

Only products are counted. Softmax, norms, feature maps, decays, biases and sums are left out, as
in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lit_jax.models.attention.gated import LOW_RANK, partition
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig, MixerConfig

Macs = dict[str, int]
"""Component -> MACs: "projections", "attention" (the core) and "convolution" (filters over the
token grid)."""


def circle(window_size: int) -> list[tuple[int, int]]:
    """Return the offsets (rows, columns) at a distance strictly below `window_size`: CLEAR's
    window."""
    reach = range(1 - window_size, window_size)
    return [(y, x) for y in reach for x in reach if y * y + x * x < window_size**2]


def window_keys(window_size: int) -> int:
    """Return keys of a query whose circle lies inside the image: 193 for r = 8, 793 for r = 16."""
    return len(circle(window_size))


def window_pairs(grid: tuple[int, int], window_size: int) -> int:
    """Pair of query and key on a token grid, where the border cuts circles: the sum over offsets of
    the number of queries whose key at that offset is inside."""
    R, C = grid
    return sum(max(0, R - abs(y)) * max(0, C - abs(x)) for y, x in circle(window_size))


def attended_share(window_size: int, image_tokens: int, text_tokens: int = 0) -> float:
    """Return keys of an inner query as a share of all keys, text tokens being keys of everyone.

    CLEAR (section 1) claims 99.5% fewer attention FLOPs at 8192 x 8192 pixels: 512^2 image tokens,
    512 text tokens and r = 16 leave 0.50% of the keys.
    """
    keys = min(window_keys(window_size), image_tokens)
    return (keys + text_tokens) / (image_tokens + text_tokens)


def kept_tokens(config: PixArtConfig) -> int:
    """Return tokens that the key/value compression of PixArt leaves, N without one."""
    compression = config.kv_compress_config
    if compression is None:
        return config.num_tokens
    (R, C), s = config.grid, compression.scale_factor
    if compression.sampling == "uniform_every":
        return math.ceil(R * C / s)
    if compression.sampling == "uniform":
        return math.ceil(R / s) * math.ceil(C / s)
    return (R // s) * (C // s)


def softmax_macs(config: DenoiserConfig, attended: int | None = None) -> Macs:
    """Return 4 N D^2 + 2 N M D (LiT paper, Eq. 4, MHSA, where M = N)."""
    N, D = config.num_tokens, config.hidden_size
    attended = N if attended is None else attended
    return {"projections": 4 * N * D * D, "attention": 2 * N * attended * D, "convolution": 0}


def linear_macs(config: DenoiserConfig, state_products: int = 2) -> Macs:
    """Return 4 N D^2 + N D + F N D^2 / h + K^2 N D with F = `state_products`.

    Algorithm 1 of LiT has F = 2: the state of h matrices (D/h)^2 is summed up from N tokens and
    read by N queries. N D is the normaliser. Focused and SANA's linear attention multiply the same.
    """
    assert isinstance(config, MixerConfig)
    N, D = config.num_tokens, config.hidden_size
    return {
        "projections": 4 * N * D * D,
        "attention": N * D + state_products * N * D * D // config.num_heads,
        "convolution": (config.kernel_size or 0) ** 2 * N * D,
    }


def window_macs(config: DenoiserConfig) -> Macs:
    """Return 4 N D^2 + 2 P D + 2 N M D for P pairs within the circles and M = N / f^2 pooled
    tokens.

    Pooling weighs every key and value once, 2 N D, which counts as a filter.
    """
    assert isinstance(config, MixerConfig)
    N, D = config.num_tokens, config.hidden_size
    macs = softmax_macs(config, attended=0)
    macs["attention"] = 2 * window_pairs(config.grid, config.window_size) * D
    if (f := config.down_factor) is not None:
        R, C = config.grid
        macs["attention"] += 2 * N * (R // f) * (C // f) * D
        macs["convolution"] = 2 * N * D
    return macs


def gated_macs(config: DenoiserConfig) -> Macs:
    """Return gated linear attention of DiG in chunks of C tokens, with Dk and Dv channels of keys
    and values, and the filters that follow the block.

    Projections: N (2 D Dk + 3 D Dv + 16 (D + Dk)), the last for the decays, of rank 16. Per token
    the state of h matrices Dk/h x Dv/h is written and read, 2 Dk Dv / h; a query is compared with
    the keys of its chunk up to its own, Dk (C + 1) / 2 on average, and weighs all values of the
    chunk, C Dv. The last segment is filled up.
    """
    assert isinstance(config, DiGConfig)
    N, D, Dk, Dv = config.num_tokens, config.hidden_size, config.key_dim, config.value_dim
    chunk, segment = partition(N)
    per_token = 2 * Dk * Dv // config.num_heads + Dk * (chunk + 1) // 2 + chunk * Dv
    size = config.conv_kernel_size if config.dw_conv else 0
    return {
        "projections": N * (2 * D * Dk + 3 * D * Dv + LOW_RANK * (D + Dk)),
        "attention": math.ceil(N / segment) * segment * per_token,
        "convolution": size**2 * N * D,
    }


MIXER_MACS: dict[str, Callable[[DenoiserConfig], Macs]] = {
    "softmax": softmax_macs,
    "linear": linear_macs,
    "focused": linear_macs,
    "sana": linear_macs,
    "window": window_macs,
    "gated": gated_macs,
}
"""Mixer -> MACs per layer, as its algorithm multiplies."""

PRINTED_STATE_PRODUCTS = 3
"""Eq. 4 of the LiT paper (MHLA) prints 3 N D^2 / h where Algorithm 1 has 2."""


def printed_macs(config: DenoiserConfig) -> int:
    """Return MACs per layer as Eq. 4 of the LiT paper prints them; what has no printed form as it
    is."""
    row = MIXER_MACS[config.mixer]
    macs = linear_macs(config, PRINTED_STATE_PRODUCTS) if row is linear_macs else row(config)
    return sum(macs.values())


def attention_components(config: DenoiserConfig) -> Macs:
    """Return MACs of all layers by component.

    Layers of PixArt that compress keys and values attend to fewer of them; learned filters weigh
    every key and value once.
    """
    macs = {name: config.depth * count for name, count in MIXER_MACS[config.mixer](config).items()}
    if isinstance(config, PixArtConfig) and config.kv_compress_config is not None:
        N, D, layers = config.num_tokens, config.hidden_size, len(config.compressed_layers)
        macs["attention"] -= layers * 2 * N * (N - kept_tokens(config)) * D
        if config.kv_compress_config.sampling == "conv":
            macs["convolution"] += layers * 2 * N * D
    return macs
