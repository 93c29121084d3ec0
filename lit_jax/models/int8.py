"""Matrices held as int8 with one float32 scale per output: 1 byte per number instead of 4.

The rounding is symmetric and per output channel c of a matrix W,

    s_c = max_i |W_ic| / 127,    Q_ic = round(W_ic / s_c),    W_ic ~ s_c Q_ic,

weights only: activations stay what they are. As s_c leaves the sum over i, a product needs the
integers alone, x W ~ (x Q) s, and every integer up to 127 is exact in bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.layers import Buffer, Initializer

LARGEST = 127


def quantise(weights: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Float [n, m] -> int8 of the same shape, and float32 scales of the axis that is not `axis`.

    `axis` is the one that shares a scale. Channels of zeros get the scale 1.
    """
    weights = weights.astype(jnp.float32)
    largest = jnp.max(jnp.abs(weights), axis=axis)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    # Half a step can be lost in the division: 127.4999 must not become 128.
    rounded = jnp.clip(jnp.round(weights / jnp.expand_dims(scale, axis)), -LARGEST, LARGEST)
    return rounded.astype(jnp.int8), scale


class Int8Dense(nnx.Module):
    """`layers.Dense` without bias on an int8 kernel [in, out] and its scales [out].

    The sum of a product is float32, the result in `dtype`.
    """

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
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.matmul(flat, kernel, preferred_element_type=jnp.float32)
        y = y * self.scale[...].astype(jnp.float32)
        return y.astype(self.dtype).reshape(*x.shape[:-1], -1)


class Int8TokenTable(nnx.Module):
    """Vector per token: ids int [B, L] -> float32 [B, L, D], from int8 rows and a scale per row."""

    def __init__(self, rows: int, width: int, *, init: Initializer, rngs: nnx.Rngs) -> None:
        embedding, scale = quantise(init(rngs.params(), (rows, width), jnp.float32), 1)
        self.embedding, self.scale = Buffer(embedding), Buffer(scale)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        # `take` makes NaN of an id beyond the table only in a float array: here it is the scale.
        rows = jnp.take(self.embedding[...], token_ids, axis=0).astype(jnp.float32)
        scale = jnp.take(self.scale[...], token_ids, axis=0).astype(jnp.float32)
        return rows * scale[..., None]
