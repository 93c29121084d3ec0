"""Linear attention of LiT (LiT paper, supplement, Algorithm 1).

B batch, N tokens, D hidden size, H heads, d = D / H channels per head, R x C token grid, K kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention import Macs
from lit_jax.models.attention.mixer import Mixer
from lit_jax.models.layers import Dense, xavier_uniform
from lit_jax.sharding import Rule

EPS = 1e-6

# phi in o_i = phi(q_i) S / (phi(q_i) . mean_j phi(k_j)); GELU is the exact one, as in the ablation.
KERNEL_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


def feature_map(x: jax.Array, kernel_fn: str) -> jax.Array:
    """Return phi(x) + 1e-6, in the dtype of x."""
    return KERNEL_FUNCTIONS[kernel_fn](x) + EPS


def linear_attention(
    q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array, eps: float = EPS
) -> jax.Array:
    """Return o_i = (q_i S) / (q_i . mean_j k_j + eps) with S = sum_j k_j^T v_j / N: -> float32.

    q and k are feature-mapped already. Everything is float32 with full-precision products
    whatever the input dtype. The mean in both places keeps the state of magnitude O(1) for any N;
    both factors of S carry N^-1/2, so that neither overflows.
    """
    q, k, v = (a.astype(jnp.float32) for a in (q_BxNxHxd, k_BxNxHxd, v_BxNxHxd))
    scale = k.shape[1] ** -0.5
    einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    state_BxHxdxd = einsum("bnhd,bnhe->bhde", k * scale, v * scale)
    normaliser_BxNxH = einsum("bnhd,bhd->bnh", q, jnp.mean(k, axis=1)) + eps
    return einsum("bnhd,bhde->bnhe", q, state_BxHxdxd) / normaliser_BxNxH[..., None]


def linear_attention_explicit(
    q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array
) -> jax.Array:
    """Return the same function through its N x N attention matrix: the definition, of quadratic
    cost.

    A_ij = q_i . k_j / N, o_i = sum_j A_ij v_j / (sum_j A_ij + 1e-6). Reference for tests.
    """
    q, k, v = (a.astype(jnp.float32) for a in (q_BxNxHxd, k_BxNxHxd, v_BxNxHxd))
    A_BxHxNxN = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest") / k.shape[1]
    A_BxHxNxN = A_BxHxNxN / (jnp.sum(A_BxHxNxN, axis=-1, keepdims=True) + EPS)
    return jnp.einsum("bhnm,bmhd->bnhd", A_BxHxNxN, v, precision="highest")


def depthwise_conv(
    v_BxNxHxd: jax.Array, kernel_KxKxd: jax.Array, bias_d: jax.Array, grid: tuple[int, int]
) -> jax.Array:
    """Return K x K depth-wise convolution on the token grid, zero padding: float32 [B, N, H, d].

    One set of d filters serves all heads: filter c acts on channel c of every head. A sum of K*K
    shifted products, which XLA fuses; on a CPU its grouped convolution takes 18 times as long, 3
    times with gradients (benchmarks/depthwise_conv.py). Raises ValueError if the grid does not have
    N tokens.
    """
    B, N, H, d = v_BxNxHxd.shape
    R, C = grid
    if R * C != N:
        raise ValueError(f"grid {R}x{C} has {R * C} tokens, but the input has {N}")
    K = kernel_KxKxd.shape[0]
    pad = K // 2
    v = v_BxNxHxd.astype(jnp.float32).reshape(B, R, C, H, d)
    v = jnp.pad(v, ((0, 0), (pad, pad), (pad, pad), (0, 0), (0, 0)))
    total = jnp.broadcast_to(bias_d, (B, R, C, H, d))
    for row in range(K):
        # One shift per row of the kernel: where devices share an image, an exchange of halos each.
        rows = v[:, row : row + R]
        for column in range(K):
            total = total + rows[:, :, column : column + C] * kernel_KxKxd[row, column]
    return total.reshape(B, N, H, d)


def linear_macs(config: Any, state_products: int = 2) -> Macs:
    """Return 4 N D^2 + N D + F N D^2 / h + K^2 N D with F = `state_products`.

    Algorithm 1 of LiT has F = 2: the state of h matrices (D/h)^2 is summed up from N tokens and
    read by N queries. N D is the normaliser. Focused and SANA's linear attention multiply the same.
    """
    N, D = config.num_tokens, config.hidden_size
    return {
        "projections": 4 * N * D * D,
        "attention": N * D + state_products * N * D * D // config.num_heads,
        "convolution": (config.kernel_size or 0) ** 2 * N * D,
    }


PRINTED_STATE_PRODUCTS = 3
"""Eq. 4 of the LiT paper (MHLA) prints 3 N D^2 / h where Algorithm 1 has 2."""


class DepthwiseConv(nnx.Module):
    """Filters of the depth-wise convolution, uniform on +-1/K as a framework default would be."""

    def __init__(self, channels: int, kernel_size: int, *, rngs: nnx.Rngs) -> None:
        shape = (kernel_size, kernel_size, channels)
        bound = 1.0 / kernel_size
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        )
        self.bias = nnx.Param(
            jax.random.uniform(rngs.params(), (channels,), minval=-bound, maxval=bound)
        )

    def __call__(self, v_BxNxHxd: jax.Array, grid: tuple[int, int]) -> jax.Array:
        return depthwise_conv(v_BxNxHxd, self.kernel[...], self.bias[...], grid)


class LinearAttention(Mixer):
    """Algorithm 1 of LiT: linear attention plus a depth-wise convolution of the values.

    [B, N, D] on a token grid -> [B, N, D]. Attention and convolution are float32 islands; the
    result returns to the compute dtype before the output projection.
    """

    SHARDING: ClassVar[tuple[Rule, ...]] = (("dwc/kernel", ()),)
    EXCHANGED: ClassVar[str | None] = "sums over all tokens, and the rows along their borders"

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        D, bias, dtype = config.hidden_size, config.qkv_bias, config.dtype
        # Algorithm 1 holds q as [D, D] and kv as one [D, 2D] matrix; the fans follow.
        kv = xavier_uniform(D, 2 * D)
        self.q = Dense(D, D, use_bias=bias, dtype=dtype, rngs=rngs)
        self.k = Dense(D, D, kernel_init=kv, use_bias=bias, dtype=dtype, rngs=rngs)
        self.v = Dense(D, D, kernel_init=kv, use_bias=bias, dtype=dtype, rngs=rngs)
        self.out = Dense(D, D, dtype=dtype, rngs=rngs)
        size = config.kernel_size
        self.dwc = DepthwiseConv(D // config.num_heads, size, rngs=rngs) if size else None
        self.num_heads = config.num_heads
        self.kernel_fn = config.kernel_fn

    @classmethod
    def macs(cls, config: Any) -> Macs:
        return linear_macs(config)

    @classmethod
    def printed_macs(cls, config: Any) -> int:
        return sum(linear_macs(config, PRINTED_STATE_PRODUCTS).values())

    def features(self, x_BxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return feature-mapped queries and keys, [B, N, D] each, before the split into heads."""
        return (
            feature_map(self.q(x_BxNxD), self.kernel_fn),
            feature_map(self.k(x_BxNxD), self.kernel_fn),
        )

    def attend(self, q_BxNxHxd: jax.Array, k_BxNxHxd: jax.Array, v_BxNxHxd: jax.Array) -> jax.Array:
        """Return attention of feature-mapped queries and keys per head, without the convolution."""
        return linear_attention(q_BxNxHxd, k_BxNxHxd, v_BxNxHxd)

    def heads(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Return what the heads return side by side, before the output projection: [B, N, D]."""
        B, N, D = x_BxNxD.shape
        heads = (B, N, self.num_heads, D // self.num_heads)
        q, k = (a.reshape(heads) for a in self.features(x_BxNxD))
        v = self.v(x_BxNxD).reshape(heads)
        o_BxNxHxd = self.attend(q, k, v)
        if self.dwc is not None:
            o_BxNxHxd = o_BxNxHxd + self.dwc(v, grid)
        return o_BxNxHxd.reshape(B, N, D).astype(x_BxNxD.dtype)
