"""Multi-head softmax attention, the mixer of DiT.

B batch, N tokens, D hidden size, H heads, d = D / H channels per head.
"""

from __future__ import annotations

import jax
from flax import nnx

from lit_jax.config import DiTConfig
from lit_jax.models.layers import Dense, xavier_uniform


def softmax_attention(
    q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v per head, logits and softmax in float32: -> [B, N, H, d]."""
    return jax.nn.dot_product_attention(q_BxNxHxd, k_BxNxHxd, v_BxNxHxd)


class SoftmaxAttention(nnx.Module):
    """Self-attention with separate q, k, v and out projections: [B, N, D] -> [B, N, D]."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        D = config.hidden_size
        # The official model initialises q, k and v as one [D, 3D] matrix.
        fused = xavier_uniform(D, 3 * D)
        bias, dtype = config.qkv_bias, config.dtype
        self.q = Dense(D, D, kernel_init=fused, use_bias=bias, dtype=dtype, rngs=rngs)
        self.k = Dense(D, D, kernel_init=fused, use_bias=bias, dtype=dtype, rngs=rngs)
        self.v = Dense(D, D, kernel_init=fused, use_bias=bias, dtype=dtype, rngs=rngs)
        self.out = Dense(D, D, dtype=dtype, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        B, N, D = x_BxNxD.shape
        heads = (B, N, self.num_heads, D // self.num_heads)
        q, k, v = (p(x_BxNxD).reshape(heads) for p in (self.q, self.k, self.v))
        return self.out(softmax_attention(q, k, v).reshape(B, N, D))
