"""Key/value token compression (PixArt-Sigma, section 3.2).

B batch, N tokens on an R x C grid, D channels, s scale factor per axis. Keys and values pass the
same compression; queries keep all their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.layers import LayerNorm
from lit_jax.models.pixart.config import KVCompressConfig


def _cropped(x_BxNxD: jax.Array, grid: tuple[int, int], s: int) -> jax.Array:
    """Return [B, R/s, s, C/s, s, D]; rows and columns beyond a multiple of s are left out, as a
    strided convolution leaves them. ValueError when nothing is left."""
    B, _, D = x_BxNxD.shape
    rows, columns = grid[0] // s, grid[1] // s
    if not rows or not columns:
        raise ValueError(
            f"token grid {grid[0]}x{grid[1]} is smaller than the scale_factor {s} of"
            " kv_compress_config; no keys would be left"
        )
    x = x_BxNxD.reshape(B, *grid, D)[:, : rows * s, : columns * s]
    return x.reshape(B, rows, s, columns, s, D)


def nearest(x_BxNxD: jax.Array, grid: tuple[int, int], s: int) -> jax.Array:
    """Apply sampling "ave": nearest-neighbour reduction to floor(R/s) x floor(C/s) tokens.
    Upstream calls it average; it is none."""
    x = _cropped(x_BxNxD, grid, s)[:, :, 0, :, 0]
    return x.reshape(x.shape[0], -1, x.shape[-1])


def strided(x_BxNxD: jax.Array, grid: tuple[int, int], s: int) -> jax.Array:
    """Apply sampling "uniform": every s-th row and column, beginning with the first."""
    B, _, D = x_BxNxD.shape
    return x_BxNxD.reshape(B, *grid, D)[:, ::s, ::s].reshape(B, -1, D)


def every(x_BxNxD: jax.Array, grid: tuple[int, int], s: int) -> jax.Array:
    """Apply sampling "uniform_every": every s-th token of the flat sequence, so 1/s of them are
    left."""
    return x_BxNxD[:, ::s]


SAMPLINGS: dict[str, Callable[[jax.Array, tuple[int, int], int], jax.Array]] = {
    "ave": nearest,
    "uniform": strided,
    "uniform_every": every,
}
"""Samplings without parameters."""


class PatchFilter(nnx.Module):
    """Depth-wise s x s convolution of stride s, an average at first: [B, N, D] -> [B, N/s^2, D]."""

    def __init__(self, channels: int, factor: int) -> None:
        self.kernel = nnx.Param(jnp.full((factor, factor, channels), 1.0 / factor**2))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.factor = factor

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Return in float32: one weighted sum per patch, which XLA fuses."""
        patches = _cropped(x_BxNxD, grid, self.factor).astype(jnp.float32)
        out = jnp.sum(patches * self.kernel[...][:, None], axis=(2, 4)) + self.bias[...]
        return out.reshape(x_BxNxD.shape[0], -1, x_BxNxD.shape[-1])


class ConvCompression(nnx.Module):
    """Sampling "conv" of one layer: learned filters, then a learned layer norm, both float32."""

    def __init__(self, channels: int, factor: int) -> None:
        self.conv = PatchFilter(channels, factor)
        self.norm = LayerNorm(channels)

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        return self.norm(self.conv(x_BxNxD, grid)).astype(x_BxNxD.dtype)


class SampledCompression(nnx.Module):
    """A row of SAMPLINGS, which neither has parameters nor normalises."""

    def __init__(self, sampling: str, factor: int) -> None:
        self.sampling, self.factor = sampling, factor

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        return SAMPLINGS[self.sampling](x_BxNxD, grid, self.factor)


def stacked_compression(
    config: KVCompressConfig, channels: int, rngs: nnx.Rngs
) -> ConvCompression | SampledCompression:
    """Return the compression of all compressed layers; parameters, if there are any, are stacked in
    ascending order of the layers."""
    if config.sampling is not None and config.sampling != "conv":
        return SampledCompression(config.sampling, config.scale_factor)
    keys = rngs.split(len(config.kv_compress_layer))
    return nnx.vmap(lambda _: ConvCompression(channels, config.scale_factor))(keys)


def kept_tokens(config: Any) -> int:
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
