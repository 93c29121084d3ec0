"""Cross-attention of image tokens to caption tokens (PixArt-alpha, section 2.3).

B batch, N image tokens, L caption tokens, D hidden size, H heads, d = D / H channels per head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention.softmax import softmax_attention
from lit_jax.models.layers import Dense, xavier_uniform, zeros
from lit_jax.models.pixart.config import PixArtConfig


class CrossAttention(nnx.Module):
    """Queries from the image, keys and values from the caption: -> [B, N, D].

    The output projection starts at zero, so that a new model ignores its captions.
    """

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        # The official model initialises k and v as one [D, 2D] matrix.
        fused = xavier_uniform(D, 2 * D)
        self.q = Dense(D, D, dtype=dtype, rngs=rngs)
        self.k = Dense(D, D, kernel_init=fused, dtype=dtype, rngs=rngs)
        self.v = Dense(D, D, kernel_init=fused, dtype=dtype, rngs=rngs)
        self.out = Dense(D, D, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.num_heads = config.cross_heads

    def __call__(
        self, x_BxNxD: jax.Array, y_BxLxD: jax.Array, mask_BxL: jax.Array | None
    ) -> jax.Array:
        """Return `mask_BxL` is boolean, true for the tokens to attend to; None: all of them.

        A caption without any such token contributes nothing before the output projection, instead
        of NaN (softmax over nothing) or of an average over padding.
        """
        B, N, D = x_BxNxD.shape
        q = self.q(x_BxNxD)
        k, v = self.k(y_BxLxD), self.v(y_BxLxD)
        q, k, v = (a.reshape(B, -1, self.num_heads, D // self.num_heads) for a in (q, k, v))
        if mask_BxL is None:
            return self.out(softmax_attention(q, k, v).reshape(B, N, D))
        o_BxNxHxd = softmax_attention(q, k, v, mask_BxL[:, None, None, :])
        attended_Bx1x1x1 = jnp.any(mask_BxL, axis=1)[:, None, None, None]
        o_BxNxHxd = jnp.where(attended_Bx1x1x1, o_BxNxHxd, 0)
        return self.out(o_BxNxHxd.reshape(B, N, D))
