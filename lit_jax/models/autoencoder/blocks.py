"""Convolutional parts of the KL autoencoder: encoder and decoder of Stable Diffusion's VAE.

The network of Rombach et al. 2022 ("High-resolution image synthesis with latent diffusion models",
section 3.1, with the regularisation they call KL-reg). B batch, H x W pixels, C channels, N = H W
positions; images are NHWC. Parameters are float32; layers compute in their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention.softmax import softmax_attention
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.layers import Dense

EPSILON = 1e-6

QUERY_CHUNK = 2048
"""Positions whose attention logits exist at a time: 2048 x N float32 numbers per image."""

# Stride 2 looks at pixels 2i, 2i+1, 2i+2: padded below and on the right only.
HALVING = ((0, 1), (0, 1))


class Conv(nnx.Module):
    """Convolution with bias: [B, H, W, in] -> [B, H', W', out]; kernel [size, size, in, out]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: Sequence[tuple[int, int]] | None = None,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        # torch's default: kernel and bias uniform on +-1/sqrt(fan_in).
        bound = 1 / math.sqrt(size * size * in_channels)
        shape = (size, size, in_channels, out_channels)
        uniform = jax.random.uniform
        self.kernel = nnx.Param(uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.bias = nnx.Param(uniform(rngs.params(), shape[-1:], jnp.float32, -bound, bound))
        self.stride = (stride, stride)
        self.padding = tuple(padding) if padding else ((size // 2, size // 2),) * 2
        self.dtype = dtype

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x_BxHxWxC.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            self.stride,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over the pixels of each group of channels, then scale and bias.

    [B, H, W, C] -> same, in the dtype of the input; two-pass statistics and the affine map in
    float32 (Wu & He 2018, Eq. 1-5).
    """

    def __init__(self, channels: int, groups: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))
        self.groups = groups

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        B, H, W, C = x_BxHxWxC.shape
        x = x_BxHxWxC.astype(jnp.float32).reshape(B, H, W, self.groups, C // self.groups)
        centred = x - jnp.mean(x, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + EPSILON)).reshape(B, H, W, C)
        return (normal * self.scale[...] + self.bias[...]).astype(x_BxHxWxC.dtype)


class ResnetBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution of x where the width
    changes: [B, H, W, in] -> [B, H, W, out]."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, *, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = Conv(out_channels, out_channels, dtype=dtype, rngs=rngs)
        widens = in_channels != out_channels
        self.shortcut = (
            Conv(in_channels, out_channels, 1, dtype=dtype, rngs=rngs) if widens else None
        )

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        y = self.conv1(jax.nn.silu(self.norm1(x_BxHxWxC)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x_BxHxWxC if self.shortcut is None else self.shortcut(x_BxHxWxC))


class Attention(nnx.Module):
    """x + out(softmax attention of one head over all pixels of norm(x)): [B, H, W, C] -> same."""

    def __init__(self, channels: int, groups: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.norm = GroupNorm(channels, groups)
        self.q = Dense(channels, channels, dtype=dtype, rngs=rngs)
        self.k = Dense(channels, channels, dtype=dtype, rngs=rngs)
        self.v = Dense(channels, channels, dtype=dtype, rngs=rngs)
        self.out = Dense(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        B, H, W, C = x_BxHxWxC.shape
        tokens_BxNxC = self.norm(x_BxHxWxC).reshape(B, H * W, C)
        q, k, v = (p(tokens_BxNxC)[:, :, None] for p in (self.q, self.k, self.v))
        attended_BxNxC = chunked_attention(q, k, v).reshape(B, H * W, C)
        return x_BxHxWxC + self.out(attended_BxNxC).reshape(B, H, W, C)


def chunked_attention(
    q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array
) -> jax.Array:
    """Return softmax attention, the queries in chunks of at most QUERY_CHUNK, one chunk after
    another.

    Every query has its own softmax, so this is what one product gives, without its N x N logits:
    1 GiB for an image of 1024 x 1024 pixels (N = 16384), 16 GiB for 2048 x 2048.
    """
    B, N, H, d = q_BxNxHxd.shape
    chunks = -(-N // QUERY_CHUNK)
    if chunks == 1:
        return softmax_attention(q_BxNxHxd, k_BxNxHxd, v_BxNxHxd)
    size = -(-N // chunks)
    padded = jnp.pad(q_BxNxHxd, ((0, 0), (0, chunks * size - N), (0, 0), (0, 0)))
    q_KxBxnxHxd = padded.reshape(B, chunks, size, H, d).swapaxes(0, 1)
    out_KxBxnxHxd = jax.lax.map(lambda q: softmax_attention(q, k_BxNxHxd, v_BxNxHxd), q_KxBxnxHxd)
    return out_KxBxnxHxd.swapaxes(0, 1).reshape(B, chunks * size, H, d)[:, :N]


class MidBlock(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.resnets = nnx.List(
            ResnetBlock(channels, channels, groups, dtype=dtype, rngs=rngs) for _ in range(2)
        )
        self.attn = Attention(channels, groups, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        first, second = self.resnets
        return second(self.attn(first(x_BxHxWxC)))


class DownBlock(nnx.Module):
    """Residual blocks of one resolution, then half the height and width (not in the last one)."""

    def __init__(
        self, widths: Sequence[int], groups: int, last: bool, *, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.resnets = _resnets(widths, groups, dtype, rngs)
        self.downsample = (
            None
            if last
            else Conv(widths[-1], widths[-1], stride=2, padding=HALVING, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        for resnet in self.resnets:
            x_BxHxWxC = resnet(x_BxHxWxC)
        return x_BxHxWxC if self.downsample is None else self.downsample(x_BxHxWxC)


class UpBlock(nnx.Module):
    """Residual blocks of one resolution, then twice the height and width (not in the last one):
    every pixel four times, and a convolution."""

    def __init__(
        self, widths: Sequence[int], groups: int, last: bool, *, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.resnets = _resnets(widths, groups, dtype, rngs)
        self.upsample = None if last else Conv(widths[-1], widths[-1], dtype=dtype, rngs=rngs)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        for resnet in self.resnets:
            x_BxHxWxC = resnet(x_BxHxWxC)
        return x_BxHxWxC if self.upsample is None else self.upsample(nearest_twice(x_BxHxWxC))


def _resnets(widths: Sequence[int], groups: int, dtype: str, rngs: nnx.Rngs) -> nnx.List:
    """Return one residual block per step from a width to the next."""
    steps = zip(widths[:-1], widths[1:], strict=True)
    return nnx.List(ResnetBlock(a, b, groups, dtype=dtype, rngs=rngs) for a, b in steps)


def nearest_twice(x_BxHxWxC: jax.Array) -> jax.Array:
    """Return every pixel as a 2 x 2 square: [B, H, W, C] -> [B, 2H, 2W, C]."""
    B, H, W, C = x_BxHxWxC.shape
    squares = jnp.broadcast_to(x_BxHxWxC[:, :, None, :, None], (B, H, 2, W, 2, C))
    return squares.reshape(B, 2 * H, 2 * W, C)


def level_widths(widths: Sequence[int], blocks: int) -> list[tuple[int, ...]]:
    """Return per level the width that comes in, from the level before, and those after every
    block."""
    entering = (widths[0], *widths[:-1])
    return [(i, *(w,) * blocks) for i, w in zip(entering, widths, strict=True)]


class Encoder(nnx.Module):
    """Image to twice the latent channels: [B, H, W, C] -> [B, H/f, W/f, 2 L]."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs) -> None:
        widths, groups, dtype = config.block_out_channels, config.norm_num_groups, config.dtype
        self.conv_in = Conv(config.in_channels, widths[0], dtype=dtype, rngs=rngs)
        levels = level_widths(widths, config.layers_per_block)
        self.down = nnx.List(
            DownBlock(level, groups, last=i == len(levels) - 1, dtype=dtype, rngs=rngs)
            for i, level in enumerate(levels)
        )
        self.mid = MidBlock(widths[-1], groups, dtype=dtype, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return self.finish(self.descend(x_BxHxWxC))

    def descend(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Return all levels, down to the resolution of the latent: -> [B, H/f, W/f, widest]."""
        x = self.conv_in(x_BxHxWxC)
        for block in self.down:
            x = block(x)
        return x

    def finish(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Return the rest, at the resolution of the latent, where every pixel sees every other."""
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x_BxHxWxC))))


class Decoder(nnx.Module):
    """Latents to image: [B, h, w, L] -> [B, h f, w f, C]; one more residual block per level."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs) -> None:
        groups, dtype = config.norm_num_groups, config.dtype
        widths = config.block_out_channels[::-1]
        self.conv_in = Conv(config.latent_channels, widths[0], dtype=dtype, rngs=rngs)
        self.mid = MidBlock(widths[0], groups, dtype=dtype, rngs=rngs)
        levels = level_widths(widths, config.layers_per_block + 1)
        self.up = nnx.List(
            UpBlock(level, groups, last=i == len(levels) - 1, dtype=dtype, rngs=rngs)
            for i, level in enumerate(levels)
        )
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], config.out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, z_BxHxWxC: jax.Array) -> jax.Array:
        return self.ascend(self.begin(z_BxHxWxC))

    def begin(self, z_BxHxWxC: jax.Array) -> jax.Array:
        """Return what runs at the resolution of the latent, where every pixel sees every other: ->
        [B, h, w, widest]."""
        return self.mid(self.conv_in(z_BxHxWxC))

    def ascend(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Return all levels, up to the resolution of the image."""
        x = x_BxHxWxC
        for block in self.up:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))
