"""Matrices held as int8 with bfloat16 scales: 1.06 bytes per number instead of 4.

The rounding is symmetric, per output channel c and group g of GROUP inputs of a matrix W,

    s_gc = max_{i in g} |W_ic| / 127,    Q_ic = round(W_ic / s_gc),    W_ic ~ s_gc Q_ic,

weights only: activations stay what they are. One scale per channel alone would have to cover the
largest of thousands of numbers; in groups of 32 the error of a product is nearly halved, which 24
layers need to keep features within a cosine of 0.999 of the float32 ones
(`benchmarks/t5_int8.py`). Scales of a token table are those of its rows, in groups of the width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.layers import Buffer, Initializer

LARGEST = 127
GROUP = 32


def group_size(count: int) -> int:
    """Return numbers that share a scale along an axis of `count`: the largest divisor up to
    GROUP."""
    return max(size for size in range(1, GROUP + 1) if count % size == 0)


def quantise(weights: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Return float [n, m] -> int8 [n, m] and bfloat16 scales, [n / group, m] for the axis 0 and [n,
    m / group] for the axis 1: numbers in a group along `axis` share one.

    Groups of zeros get the scale 1.
    """
    grouped = _in_groups(weights.astype(jnp.float32), axis)
    largest = jnp.max(jnp.abs(grouped), axis=axis + 1)
    # Rounded before it is used, a scale of 8 bits costs nothing; upwards, so that 127 is enough.
    scale = jnp.where(largest > 0, largest / LARGEST * (1 + 2**-8), 1.0).astype(jnp.bfloat16)
    integers = jnp.round(grouped / jnp.expand_dims(scale.astype(jnp.float32), axis + 1))
    return integers.astype(jnp.int8).reshape(weights.shape), scale


def dequantise(integers: jax.Array, scale: jax.Array, axis: int) -> jax.Array:
    """Return the float32 matrix that `quantise` has made the two of, but for its rounding."""
    grouped = _in_groups(integers, axis).astype(jnp.float32)
    scale = jnp.expand_dims(scale.astype(jnp.float32), axis + 1)
    return (grouped * scale).reshape(integers.shape)


def _in_groups(matrix: jax.Array, axis: int) -> jax.Array:
    """Return [n, m] with `axis` split into (groups, numbers in a group)."""
    size = group_size(matrix.shape[axis])
    shape = list(matrix.shape)
    shape[axis : axis + 1] = [shape[axis] // size, size]
    return matrix.reshape(shape)


class Int8Dense(nnx.Module):
    """`layers.Dense` without bias, on an int8 kernel [in, out] and its scales [in / group, out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        kernel, scale = quantise(kernel_init(rngs.params(), (in_features, out_features)), 0)
        self.kernel, self.scale = Buffer(kernel), Buffer(scale)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = dequantise(self.kernel[...], self.scale[...], 0).astype(self.dtype)
        y = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel
        return y.reshape(*x.shape[:-1], -1)


class Int8TokenTable(nnx.Module):
    """Vector per token: ids int [B, L] -> float32 [B, L, D], from int8 rows [V, D] and their scales
    [V, D / group]."""

    def __init__(self, rows: int, width: int, *, init: Initializer, rngs: nnx.Rngs) -> None:
        embedding, scale = quantise(init(rngs.params(), (rows, width), jnp.float32), 1)
        self.embedding, self.scale = Buffer(embedding), Buffer(scale)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        # An id beyond the table becomes NaN by its scale: there are no integers that could say so.
        ids = token_ids.reshape(-1)
        rows = jnp.take(self.embedding[...], ids, axis=0)
        scale = jnp.take(self.scale[...], ids, axis=0)
        return dequantise(rows, scale, 1).reshape(*token_ids.shape, -1)
