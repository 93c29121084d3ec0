"""Gated linear attention (Yang et al. 2023), the mixer of DiG.

B batch, N tokens, D hidden size, H heads, k channels of keys and e of values per head, n chunks of
C tokens (a power of two), m tokens of half a block, s segments of L tokens. `log_decay` a <= 0 is
the logarithm of a decay per token and key channel. For one head, with S_0 = 0:

    S_t = diag(exp(a_t)) S_{t-1} + k_t^T v_t,    o_t = q_t S_t / sqrt(k)

Three forms of the same function: by recurrence, by the N x N weights, and in chunks. No form
divides by a decay: every exponent is a sum of some a_t, hence at most 0 and as exact as they are.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lit_jax.models.attention import Macs
from lit_jax.models.attention.mixer import Mixer
from lit_jax.models.layers import Dense, Initializer, xavier_uniform
from lit_jax.sharding import Rule

CHUNK = 64
"""Tokens whose mutual weights are computed as a matrix; the state passes from chunk to chunk."""

SEGMENT = 512
"""Tokens that are computed at a time: what bounds the memory, and on a CPU stays in the cache."""

LOW_RANK = 16
"""Width between the two projections of the decay."""

NORMALISER = 16.0
"""The log-decay is the log of a sigmoid over this, so that it starts at 0.957 per token."""

INIT_GAIN = 2**-2.5
"""Gain of the Xavier initialisation of all projections (official code)."""

NORM_EPS = 1e-6

einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

Result = tuple[jax.Array, jax.Array]


def _float32(
    q_BxNxHxk: jax.Array, k_BxNxHxk: jax.Array, v_BxNxHxe: jax.Array, log_decay_BxNxHxk: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return all inputs in float32, the queries divided by sqrt(k)."""
    q, k, v, a = (
        x.astype(jnp.float32) for x in (q_BxNxHxk, k_BxNxHxk, v_BxNxHxe, log_decay_BxNxHxk)
    )
    return q * q.shape[-1] ** -0.5, k, v, a


def gated_linear_attention_recurrent(
    q_BxNxHxk: jax.Array, k_BxNxHxk: jax.Array, v_BxNxHxe: jax.Array, log_decay_BxNxHxk: jax.Array
) -> Result:
    """Return token by token, the definition: o [B, N, H, e] and the last state [B, H, k, e],
    float32.

    Yang et al. 2023, equation 3. Reference for tests.
    """
    inputs = _float32(q_BxNxHxk, k_BxNxHxk, v_BxNxHxe, log_decay_BxNxHxk)

    def token(S_BxHxkxe: jax.Array, at: tuple[jax.Array, ...]) -> Result:
        q, k, v, a = at
        S = jnp.exp(a)[..., None] * S_BxHxkxe + k[..., None] * v[..., None, :]
        return S, einsum("bhk,bhke->bhe", q, S)

    B, _, H, k = q_BxNxHxk.shape
    start = jnp.zeros((B, H, k, v_BxNxHxe.shape[-1]))
    state, o_NxBxHxe = jax.lax.scan(token, start, tuple(jnp.moveaxis(x, 1, 0) for x in inputs))
    return jnp.moveaxis(o_NxBxHxe, 0, 1), state


def gated_linear_attention_explicit(
    q_BxNxHxk: jax.Array, k_BxNxHxk: jax.Array, v_BxNxHxe: jax.Array, log_decay_BxNxHxk: jax.Array
) -> Result:
    """Return the same through all weights A_ts = sum_k q_tk k_sk exp(a_{s+1} + ... + a_t), s <= t.

    Yang et al. 2023, equation 4; [B, N, N, H, k] in memory. Reference for tests.
    """
    q, k, v, a = _float32(q_BxNxHxk, k_BxNxHxk, v_BxNxHxe, log_decay_BxNxHxk)
    N = q.shape[1]
    token = np.arange(N)
    # between[t, s, u]: whether a_u lies between s (exclusive) and t (inclusive).
    between = (token > token[:, None]) & (token <= token[:, None, None])
    exponent_BxNxNxHxk = einsum("tsu,buhk->btshk", between.astype(np.float32), a)
    past = (token <= token[:, None])[None, :, :, None, None]
    decay_BxNxNxHxk = jnp.where(past, jnp.exp(exponent_BxNxNxHxk), 0.0)
    A_BxHxNxN = einsum("bthk,bshk,btshk->bhts", q, k, decay_BxNxNxHxk)
    state = einsum("bshk,bshk,bshe->bhke", decay_BxNxNxHxk[:, -1], k, v)
    return einsum("bhts,bshe->bthe", A_BxHxNxN, v), state


def partition(tokens: int, chunk: int = CHUNK, segment: int = SEGMENT) -> tuple[int, int]:
    """Return tokens of a chunk and of a segment, at most those given: segments of one length with
    as few chunks as possible beyond the last token."""
    chunk = min(chunk, 1 << (tokens - 1).bit_length())
    chunks = -(-tokens // chunk)
    segments = -(-chunks // (segment // chunk))
    return chunk, -(-chunks // segments) * chunk


def gated_linear_attention(
    q_BxNxHxk: jax.Array,
    k_BxNxHxk: jax.Array,
    v_BxNxHxe: jax.Array,
    log_decay_BxNxHxk: jax.Array,
    chunk: int = CHUNK,
    segment: int = SEGMENT,
) -> Result:
    """Return the same in time linear in N: o [B, N, H, e] and the last state [B, H, k, e], float32.

    Yang et al. 2023, section 4, with the weights inside a chunk from `chunk_weights`. Tokens are
    taken a segment at a time; the backward pass computes a segment anew, so that between the two
    passes only inputs and one state per segment are held. Whatever the input dtype, everything is
    float32. Raises ValueError when `chunk` is no power of two or `segment` no multiple of it.
    """
    if chunk < 1 or chunk & (chunk - 1) or segment < 1 or segment % chunk:
        raise ValueError(
            f"chunk is {chunk} and segment {segment}; a power of two and a multiple of it are"
            " needed"
        )
    B, N, H, k = q_BxNxHxk.shape
    chunk, L = partition(N, chunk, segment)
    start = jnp.zeros((B, H, k, v_BxNxHxe.shape[-1]))
    body = jax.checkpoint(functools.partial(_segment, chunk=chunk), prevent_cse=False)

    def segments(x_BxNxHxc: jax.Array) -> jax.Array:
        """Return [s, B, L, H, c]: tokens that fill the last segment have no key and do not
        decay."""
        x = jnp.pad(x_BxNxHxc, ((0, 0), (0, -N % L), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(B, -1, L, *x.shape[2:]), 1, 0)

    inputs = (q_BxNxHxk, k_BxNxHxk, v_BxNxHxe, log_decay_BxNxHxk)
    state, o_sxBxLxHxe = jax.lax.scan(body, start, tuple(segments(x) for x in inputs))
    o = jnp.moveaxis(o_sxBxLxHxe, 0, 1).reshape(B, -1, H, v_BxNxHxe.shape[-1])
    return o[:, :N], state


def _segment(state_BxHxkxe: jax.Array, inputs: tuple[jax.Array, ...], chunk: int) -> Result:
    """Return one segment: (state before, q, k, v, a [B, L, H, c]) -> (state after, o [B, L, H,
    e])."""

    def chunks(x_BxLxHxc: jax.Array) -> jax.Array:
        B, _, H, c = x_BxLxHxc.shape
        return jnp.moveaxis(x_BxLxHxc.reshape(B, -1, chunk, H, c), 3, 1)

    q, k, v, a = _float32(*inputs)
    q, k, v, a = (chunks(x) for x in (q, k, v, a))
    A_BxHxnxCxC, since_BxHxnxCxk, until_BxHxnxCxk = chunk_weights(q, k, a)
    gained_nxBxHxkxe = einsum("bhnck,bhnce->nbhke", k * jnp.exp(until_BxHxnxCxk), v)
    decay_nxBxHxk = jnp.exp(jnp.moveaxis(since_BxHxnxCxk[..., -1, :], 2, 0))

    def pass_on(S: jax.Array, at: tuple[jax.Array, jax.Array]) -> Result:
        decay, gained = at
        return decay[..., None] * S + gained, S

    state, before_nxBxHxkxe = jax.lax.scan(
        pass_on, state_BxHxkxe, (decay_nxBxHxk, gained_nxBxHxkxe)
    )
    o = einsum("bhnck,nbhke->bhnce", q * jnp.exp(since_BxHxnxCxk), before_nxBxHxkxe)
    o_BxHxnxCxe = o + einsum("bhnts,bhnse->bhnte", A_BxHxnxCxC, v)
    o = jnp.moveaxis(o_BxHxnxCxe, 1, 3)
    return state, o.reshape(o.shape[0], -1, *o.shape[3:])


def chunk_weights(
    q_BxHxnxCxk: jax.Array, k_BxHxnxCxk: jax.Array, a_BxHxnxCxk: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return weights inside chunks A [B, H, n, C, C], zero above the diagonal, and the log-decay
    from the start of a chunk to each token (inclusive) and from each token (exclusive) to its end,
    like a.

    Blocks of one token, their weight being q . k, are merged in pairs, log2(C) times. A query of
    the second half sees a key of the first through the border between the halves:
    A_ts = (q_t exp(a_{border+1} + ... + a_t)) . (k_s exp(a_{s+1} + ... + a_border)). Both exponents
    are at most 0, and one product of matrices does all pairs of a block. A difference of running
    sums instead would lose the digits of a small decay after a large one.
    """
    blocks = (q_BxHxnxCxk, k_BxHxnxCxk, a_BxHxnxCxk, jnp.zeros_like(a_BxHxnxCxk))
    q, k, since, until = (x[..., None, :] for x in blocks)
    A = jnp.sum(q * k, axis=-1, keepdims=True)
    while A.shape[-3] > 1:
        (q0, q1), (k0, k1), (since0, since1), (until0, until1), (A0, A1) = (
            _halves(x) for x in (q, k, since, until, A)
        )
        X = einsum("...tk,...sk->...ts", q1 * jnp.exp(since1), k0 * jnp.exp(until0))
        above = jnp.concatenate([A0, jnp.zeros_like(X)], axis=-1)
        A = _join(above, jnp.concatenate([X, A1], axis=-1))
        q, k = _join(q0, q1), _join(k0, k1)
        sum0, sum1 = since0[..., -1:, :], since1[..., -1:, :]
        since, until = _join(since0, since1 + sum0), _join(until0 + sum1, until1)
    return A[..., 0, :, :], since[..., 0, :, :], until[..., 0, :, :]


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return blocks [..., 2 b, m, c] as the first and the second ones of all pairs, [..., b, m,
    c]."""
    *lead, count, m, c = x.shape
    pairs = x.reshape(*lead, count // 2, 2, m, c)
    return pairs[..., 0, :, :], pairs[..., 1, :, :]


def _join(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return halves of a block, one after the other."""
    return jnp.concatenate([first, second], axis=-2)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float = NORM_EPS) -> jax.Array:
    """Return x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps) * scale


class RMSNorm(nnx.Module):
    """RMS norm with a learned scale over the last axis, a float32 island."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...])


class LowRank(nnx.Module):
    """Linear without bias to LOW_RANK channels, then Linear: [..., width] -> [..., out]."""

    def __init__(self, width: int, out: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.down = _projection(width, LOW_RANK, dtype, rngs)
        self.up = _projection(LOW_RANK, out, dtype, rngs, use_bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(self.down(x))


def _scaled_xavier(fan_in: int, fan_out: int) -> Initializer:
    """Return Xavier uniform with INIT_GAIN."""
    plain = xavier_uniform(fan_in, fan_out)
    return lambda *arguments: INIT_GAIN * plain(*arguments)


def _projection(width: int, out: int, dtype: str, rngs: nnx.Rngs, use_bias: bool = False) -> Dense:
    init = _scaled_xavier(width, out)
    return Dense(width, out, kernel_init=init, use_bias=use_bias, dtype=dtype, rngs=rngs)


def gated_macs(config: Any) -> Macs:
    """Return gated linear attention of DiG in chunks of C tokens, with Dk and Dv channels of keys
    and values, and the filters that follow the block.

    Projections: N (2 D Dk + 3 D Dv + 16 (D + Dk)), the last for the decays, of rank 16. Per token
    the state of h matrices Dk/h x Dv/h is written and read, 2 Dk Dv / h; a query is compared with
    the keys of its chunk up to its own, Dk (C + 1) / 2 on average, and weighs all values of the
    chunk, C Dv. The last segment is filled up.
    """
    N, D, Dk, Dv = config.num_tokens, config.hidden_size, config.key_dim, config.value_dim
    chunk, segment = partition(N)
    per_token = 2 * Dk * Dv // config.num_heads + Dk * (chunk + 1) // 2 + chunk * Dv
    size = config.conv_kernel_size if config.dw_conv else 0
    return {
        "projections": N * (2 * D * Dk + 3 * D * Dv + LOW_RANK * (D + Dk)),
        "attention": math.ceil(N / segment) * segment * per_token,
        "convolution": size**2 * N * D,
    }


class GatedAttention(Mixer):
    """Gated linear attention along the tokens as they come: [B, N, D] -> [B, N, D].

    Per head an RMS norm (one scale for all heads) and a gate: norm(o) * silu(g). The recurrence,
    the norm and the gate are float32 islands.
    """

    SHARDING: ClassVar[tuple[Rule, ...]] = (
        ("gk/down/kernel", (None, "fsdp", None)),
        ("gk/up/kernel", ()),
    )

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        keys, values = config.key_dim, config.value_dim
        self.q = _projection(D, keys, dtype, rngs)
        self.k = _projection(D, keys, dtype, rngs)
        self.v = _projection(D, values, dtype, rngs)
        self.g = _projection(D, values, dtype, rngs)
        self.gk = LowRank(D, keys, dtype=dtype, rngs=rngs)
        self.g_norm = RMSNorm(values // config.num_heads)
        self.out = _projection(values, D, dtype, rngs)
        self.num_heads = config.num_heads

    @classmethod
    def macs(cls, config: Any) -> Macs:
        return gated_macs(config)

    def log_decay(self, x_BxNxD: jax.Array) -> jax.Array:
        """Return log(sigmoid(gk)) / 16 of every token and key channel, float32 [B, N, keys]."""
        return jax.nn.log_sigmoid(self.gk(x_BxNxD).astype(jnp.float32)) / NORMALISER

    def heads(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Return what the heads return side by side, normed and gated, before the output
        projection: [B, N, values]. Tokens are a sequence here; the grid does not matter."""
        projections: Any = (self.q, self.k, self.v, self.log_decay, self.g)
        q, k, v, a, g = (
            project(x_BxNxD).reshape(*x_BxNxD.shape[:2], self.num_heads, -1)
            for project in projections
        )
        o_BxNxHxe, _ = gated_linear_attention(q, k, v, a)
        gated = self.g_norm(o_BxNxHxe) * jax.nn.silu(g.astype(jnp.float32))
        return gated.reshape(*x_BxNxD.shape[:2], -1).astype(x_BxNxD.dtype)
