"""SANA's linear attention: ReLU features without an epsilon, normalised by their sum.

B batch, N tokens, D hidden size, H heads, d = D / H channels per head.
"""

from __future__ import annotations

from typing import ClassVar

import jax

from lit_jax.models.attention.linear import KERNEL_FUNCTIONS, LinearAttention, linear_attention

# Published copies have 1e-15 or 1e-8. The gradient holds the square of the denominator: 1e-30 is
# close to the end of float32, 1e-16 is not.
SANA_EPS = 1e-8


def sana_attention(q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array) -> jax.Array:
    """Return o_i = q_i sum_j k_j^T v_j / (q_i . sum_j k_j + 1e-8): -> float32 [B, N, H, d].

    q and k are feature-mapped already. With means instead of sums above and below the fraction line
    the epsilon is 1e-8 / N, and the state stays O(1) for any N.
    """
    return linear_attention(q_BxNxHxd, k_BxNxHxd, v_BxNxHxd, eps=SANA_EPS / k_BxNxHxd.shape[1])


class SanaAttention(LinearAttention):
    """Linear attention as in SANA (Xie et al. 2024, section 2.3), on the parameters of LiT's.

    SANA has heads of 32 channels, no bias before q, k and v, and no convolution here (its own is in
    the MLP): `num_heads` D / 32, `qkv_bias` False and `kernel_size` None. Other values are taken as
    they are given, so that a comparison with LiT's normaliser can change nothing else.
    """

    EXCHANGED: ClassVar[str | None] = "sums over all tokens"

    def features(self, x_BxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return phi(q) and phi(k), [B, N, D] each; a token without an active unit is 0."""
        phi = KERNEL_FUNCTIONS[self.kernel_fn]
        return phi(self.q(x_BxNxD)), phi(self.k(x_BxNxD))

    def attend(self, q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array) -> jax.Array:
        return sana_attention(q_BxNxHxd, k_BxNxHxd, v_BxNxHxd)
