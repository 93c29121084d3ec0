"""Layers shared by every network.

Parameters are float32; each layer computes in the dtype it was built with. Normalisation
statistics and sinusoids are float32 islands.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]

zeros = nnx.initializers.zeros_init()


class Buffer(nnx.Variable[jax.Array]):
    """An array that is stored and loaded with the parameters of a network but never trained."""


def xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Return uniform on +-sqrt(6 / (fan_in + fan_out)), with the fans given instead of read off the
    shape.

    The official DiT initialises q, k and v as one matrix with fan_out = 3D, so the fans of a
    separate projection cannot be inferred from its own shape.
    """
    bound = math.sqrt(6.0 / (fan_in + fan_out))

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nnx.Module):
    """y = x W + b on the last axis of x [..., in] -> [..., out].

    Leading axes are flattened to one: the forward pass is the same, but the XLA CPU backend needs
    about half the time for the gradient of a 2-D product.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer | None = None,
        use_bias: bool = True,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        kernel_init = kernel_init or xavier_uniform(in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros((out_features,))) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y.reshape(*x.shape[:-1], -1)


class Mlp(nnx.Module):
    """Linear, GELU (tanh approximation), Linear: [..., width] -> [..., out], `width` by default."""

    def __init__(
        self,
        width: int,
        hidden: int,
        out: int | None = None,
        *,
        kernel_init: Initializer | None = None,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        out = width if out is None else out
        self.fc1 = Dense(width, hidden, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.fc2 = Dense(hidden, out, kernel_init=kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Return layer norm without scale and bias over the last axis, two-pass statistics in
    float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with learned scale and bias over the last axis, a float32 island.

    eps is that of torch's default, which the official code uses wherever the norm is learned.
    """

    EPS = 1e-5

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        normal = layer_norm(x.astype(jnp.float32), self.EPS)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


def modulate(x_BxNxD: jax.Array, shift_BxD: jax.Array, scale_BxD: jax.Array) -> jax.Array:
    """Return x (1 + scale) + shift, broadcast over tokens (DiT, section 3.2, adaLN)."""
    return x_BxNxD * (1 + scale_BxD[:, None]) + shift_BxD[:, None]


def timestep_embedding(t_B: jax.Array, width: int = 256) -> jax.Array:
    """Return [cos(t f_j), sin(t f_j)] with f_j = 10000^(-j / (width/2)): [B] -> float32 [B, width].

    Computed in float32 whatever the compute dtype: the spacing of bfloat16 at t=999 is 4.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(t_B, jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedder(nnx.Module):
    """Sinusoid of width 256, then Linear, SiLU, Linear: t [B] -> [B, D]."""

    WIDTH = 256

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        normal = nnx.initializers.normal(0.02)
        self.fc1 = Dense(self.WIDTH, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.fc2 = Dense(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)

    def __call__(self, t_B: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.silu(self.fc1(timestep_embedding(t_B, self.WIDTH))))


class LabelEmbedder(nnx.Module):
    """Table of class vectors, the null class last: labels int [B] -> [B, D]."""

    def __init__(self, rows: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        normal = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(normal(rngs.params(), (rows, width), jnp.float32))
        self.dtype = dtype

    def __call__(self, label_B: jax.Array) -> jax.Array:
        return jnp.take(self.embedding[...].astype(self.dtype), label_B, axis=0)


def patchify(x_BxHxWxC: jax.Array, patch: int) -> jax.Array:
    """Return [B, H, W, C] -> [B, N, patch*patch*C]; inside a patch: row, column, channel
    (fastest)."""
    B, H, W, C = x_BxHxWxC.shape
    x = x_BxHxWxC.reshape(B, H // patch, patch, W // patch, patch, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, patch * patch * C)


def unpatchify(x_BxNxP: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Return inverse of `patchify` for a token grid of `grid` rows and columns."""
    B, _, P = x_BxNxP.shape
    x = x_BxNxP.reshape(B, grid[0], grid[1], patch, patch, P // (patch * patch))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, grid[0] * patch, grid[1] * patch, -1)
