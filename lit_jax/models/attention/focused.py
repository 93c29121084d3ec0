"""Focused linear attention (FLatten Transformer), the stronger baseline of LiT's Table 1.

B batch, N tokens, D hidden size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.config import DiTConfig
from lit_jax.models.attention.linear import LinearAttention

FOCUSING_FACTOR = 3


def focus(x_BxNxD: jax.Array, factor: int = FOCUSING_FACTOR) -> jax.Array:
    """|x| x^p / |x^p|: sharpens the direction, keeps the norm over all D channels."""
    norm = jnp.linalg.norm(x_BxNxD, axis=-1, keepdims=True)
    powered = x_BxNxD**factor
    return powered / jnp.linalg.norm(powered, axis=-1, keepdims=True) * norm


class FocusedAttention(LinearAttention):
    """Linear attention whose features are divided by a learned softplus scale and focused."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.scale = nnx.Param(jnp.zeros((1, 1, config.hidden_size)))

    def features(self, x_BxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, k = super().features(x_BxNxD)
        scale = jax.nn.softplus(self.scale[...])
        # Powers and norms in float32: cubes leave the range of half precision.
        return focus(q.astype(jnp.float32) / scale), focus(k.astype(jnp.float32) / scale)
