"""Multi-head softmax attention, the mixer of DiT and PixArt.

B batch, N tokens, D hidden size, H heads, d = D / H channels per head, M attended tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from lit_jax.models.attention import Macs
from lit_jax.models.attention.mixer import Mixer
from lit_jax.models.layers import Dense, LayerNorm, xavier_uniform

Compression = Callable[[jax.Array, tuple[int, int]], jax.Array]
"""Keys or values [B, N, D] on a token grid -> [B, M, D] with fewer tokens."""


def softmax_attention(
    q_BxNxHxd: jax.Array,
    k_BxMxHxd: jax.Array,
    v_BxMxHxd: jax.Array,
    mask_Bx1x1xM: jax.Array | None = None,
) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v per head, logits and softmax in float32: -> [B, N, H, d].

    Where the boolean mask is false, a token gets no weight; if it is false everywhere, all tokens
    get the same.
    """
    return jax.nn.dot_product_attention(q_BxNxHxd, k_BxMxHxd, v_BxMxHxd, mask=mask_Bx1x1xM)


def softmax_macs(config: Any, attended: int | None = None) -> Macs:
    """Return 4 N D^2 + 2 N M D (LiT paper, Eq. 4, MHSA, where M = N), with M = `attended`."""
    N, D = config.num_tokens, config.hidden_size
    attended = N if attended is None else attended
    return {"projections": 4 * N * D * D, "attention": 2 * N * attended * D, "convolution": 0}


class SoftmaxAttention(Mixer):
    """Self-attention with separate q, k, v and out projections: [B, N, D] -> [B, N, D].

    With `qk_norm` (PixArt) queries and keys pass a learned layer norm over all D channels, before
    the split into heads. `compress` then takes keys and values to fewer tokens.
    """

    EXCHANGED: ClassVar[str | None] = (
        "the keys and values of all tokens, which each device holds whole"
    )

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        D = config.hidden_size
        # The official model initialises q, k and v as one [D, 3D] matrix.
        fused = xavier_uniform(D, 3 * D)
        bias, dtype = config.qkv_bias, config.dtype
        self.q = Dense(D, D, kernel_init=fused, use_bias=bias, dtype=dtype, rngs=rngs)
        self.k = Dense(D, D, kernel_init=fused, use_bias=bias, dtype=dtype, rngs=rngs)
        self.v = Dense(D, D, kernel_init=fused, use_bias=bias, dtype=dtype, rngs=rngs)
        self.out = Dense(D, D, dtype=dtype, rngs=rngs)
        qk_norm = getattr(config, "qk_norm", False)  # a field of PixArt
        self.q_norm = LayerNorm(D) if qk_norm else None
        self.k_norm = LayerNorm(D) if qk_norm else None
        self.num_heads = config.num_heads

    def __call__(
        self, x_BxNxD: jax.Array, grid: tuple[int, int], compress: Compression | None = None
    ) -> jax.Array:
        return self.out(self.heads(x_BxNxD, grid, compress))

    def heads(
        self, x_BxNxD: jax.Array, grid: tuple[int, int], compress: Compression | None = None
    ) -> jax.Array:
        """Return what the heads return side by side, before the output projection: [B, N, D]."""
        B, N, D = x_BxNxD.shape
        q, k, v = (project(x_BxNxD) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if compress is not None:
            k, v = compress(k, grid), compress(v, grid)
        q, k, v = (a.reshape(B, -1, self.num_heads, D // self.num_heads) for a in (q, k, v))
        return self.attend(q, k, v, grid).reshape(B, N, D)

    @classmethod
    def macs(cls, config: Any) -> Macs:
        return softmax_macs(config)

    def attend(
        self,
        q_BxNxHxd: jax.Array,
        k_BxMxHxd: jax.Array,
        v_BxMxHxd: jax.Array,
        grid: tuple[int, int],
    ) -> jax.Array:
        """Return the weighted values of the tokens that each query attends to: [B, N, H, d]."""
        return softmax_attention(q_BxNxHxd, k_BxMxHxd, v_BxMxHxd)
