"""Attention within circular windows (CLEAR: Liu et al. 2024, Conv-Like Linearization Revs
Pre-Trained Diffusion Transformers Up).

B batch, N tokens on an R x C grid, D hidden size, H heads, d = D / H channels per head, r radius.
The grid is cut into S strips of t rows and T tiles of u columns: Q = t u queries of one tile, y
their rows and x their columns; keys lie in Y rows and X columns around them, K = Y X; M pooled
tokens.
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
from lit_jax.models.attention.circle import check_pooling, window_pairs
from lit_jax.models.attention.softmax import SoftmaxAttention, softmax_macs
from lit_jax.models.attention.tiling import Tiling
from lit_jax.sharding import Rule

Pair = tuple[jax.Array, jax.Array]
"""Keys and values."""

NOTHING = -0.7 * float(np.finfo(np.float32).max)
"""Logit of a key that is not seen. Finite: a tile that sticks out of the grid has queries that see
nothing, whose outputs are cut off and must not turn gradients into NaN."""


def circle_mask(grid: tuple[int, int], window_size: int) -> np.ndarray:
    """Return bool [N, N]: query i sees key j where dy^2 + dx^2 < r^2. The border cuts circles
    off."""
    y_N, x_N = (axis.reshape(-1) for axis in np.indices(grid))
    squares_NxN = (y_N[:, None] - y_N) ** 2 + (x_N[:, None] - x_N) ** 2
    return np.asarray(squares_NxN < window_size**2)


def window_attention_explicit(
    q_BxNxHxd: jax.Array,
    k_BxNxHxd: jax.Array,
    v_BxNxHxd: jax.Array,
    grid: tuple[int, int],
    window_size: int,
    pooled_BxMxHxd: Pair | None = None,
) -> jax.Array:
    """Return `window_attention` as masked softmax over N x (N + M) logits, in float32: the
    definition, of quadratic cost. Reference for tests."""
    q, k, v = (a.astype(jnp.float32) for a in (q_BxNxHxd, k_BxNxHxd, v_BxNxHxd))
    mask_NxK = circle_mask(grid, window_size)
    if pooled_BxMxHxd is not None:
        k, v = (
            jnp.concatenate([a, b], axis=1) for a, b in zip((k, v), pooled_BxMxHxd, strict=True)
        )
        mask_NxK = np.pad(mask_NxK, ((0, 0), (0, k.shape[1] - q.shape[1])), constant_values=True)
    logits_BxHxNxK = jnp.einsum("bnhd,bkhd->bhnk", q, k, precision="highest") * q.shape[-1] ** -0.5
    weights_BxHxNxK = jax.nn.softmax(jnp.where(mask_NxK, logits_BxHxNxK, -jnp.inf), axis=-1)
    return jnp.einsum("bhnk,bkhd->bnhd", weights_BxHxNxK, v, precision="highest")


def window_attention(
    q_BxNxHxd: jax.Array,
    k_BxNxHxd: jax.Array,
    v_BxNxHxd: jax.Array,
    grid: tuple[int, int],
    window_size: int,
    pooled_BxMxHxd: Pair | None = None,
) -> jax.Array:
    """Return softmax attention of every query to the keys at a distance below `window_size` = r
    tokens on the grid, with scale d^-1/2: [B, N, H, d] in the dtype of q.

    `pooled` are further keys and values, seen by all queries in the same softmax. Logits and
    softmax are float32. The cost is proportional to N (r^2 + M); what is in memory at a time are
    the logits of one tile of columns, in the backward pass, too. Exact for any grid and radius.
    Raises ValueError if the grid does not have N tokens.
    """
    R, C = grid
    if q_BxNxHxd.shape[1] != R * C:
        raise ValueError(f"grid {R}x{C} has {R * C} tokens, but the input has {q_BxNxHxd.shape[1]}")
    tiling = Tiling.of(grid, window_size)
    far = None
    if pooled_BxMxHxd is not None:
        far = pooled_BxMxHxd[0].swapaxes(1, 2), pooled_BxMxHxd[1].swapaxes(1, 2)
    keys, values = tiling.strips(k_BxNxHxd), tiling.strips(v_BxNxHxd)
    return tiling.outputs(_columns(tiling, tiling.queries(q_BxNxHxd), keys, values, far))


def _attend(
    tiling: Tiling,
    tile: jax.Array,
    q_BxHxSxQxd: jax.Array,
    k_BxHxSxYxXxd: jax.Array,
    v_BxHxSxYxXxd: jax.Array,
    far_BxHxMxd: Pair | None,
) -> jax.Array:
    """Return one tile of columns, all strips at once: [B, H, S, Q, d]."""
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scale, dtype = q_BxHxSxQxd.shape[-1] ** -0.5, q_BxHxSxQxd.dtype
    k, v = (
        a.reshape(*a.shape[:3], tiling.Y * tiling.X, a.shape[-1])
        for a in (k_BxHxSxYxXxd, v_BxHxSxYxXxd)
    )
    near_BxHxSxQxK = dot("bhsqd,bhskd->bhsqk", q_BxHxSxQxd, k) * scale
    near_BxHxSxQxK = jnp.where(tiling.mask(tile), near_BxHxSxQxK, NOTHING)
    top_BxHxSxQx1 = jnp.max(near_BxHxSxQxK, axis=-1, keepdims=True)
    if far_BxHxMxd is not None:
        far_BxHxSxQxM = dot("bhsqd,bhmd->bhsqm", q_BxHxSxQxd, far_BxHxMxd[0]) * scale
        top_BxHxSxQx1 = jnp.maximum(top_BxHxSxQx1, jnp.max(far_BxHxSxQxM, axis=-1, keepdims=True))
    top_BxHxSxQx1 = jax.lax.stop_gradient(top_BxHxSxQx1)
    weights = jnp.exp(near_BxHxSxQxK - top_BxHxSxQx1)
    total_BxHxSxQx1 = jnp.sum(weights, axis=-1, keepdims=True)
    # Divided by the total at the end: Q d quotients instead of Q K.
    o_BxHxSxQxd = dot("bhsqk,bhskd->bhsqd", weights.astype(dtype), v)
    if far_BxHxMxd is not None:
        weights = jnp.exp(far_BxHxSxQxM - top_BxHxSxQx1)
        total_BxHxSxQx1 = total_BxHxSxQx1 + jnp.sum(weights, axis=-1, keepdims=True)
        o_BxHxSxQxd += dot("bhsqm,bhmd->bhsqd", weights.astype(dtype), far_BxHxMxd[1])
    return (o_BxHxSxQxd / total_BxHxSxQx1).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _columns(
    tiling: Tiling,
    q_TxBxHxSxQxd: jax.Array,
    k_BxHxSxYxCxd: jax.Array,
    v_BxHxSxYxCxd: jax.Array,
    far_BxHxMxd: Pair | None,
) -> jax.Array:
    """Return tile after tile of columns: [T, B, H, S, Q, d].

    The gradients are written out below: those that a loop gets by itself add an array of the size
    of all keys for every tile, which is quadratic.
    """

    def one(of_tile: Pair) -> jax.Array:
        tile, q = of_tile
        k, v = (_slice(a, tiling, tile) for a in (k_BxHxSxYxCxd, v_BxHxSxYxCxd))
        return _attend(tiling, tile, q, k, v, far_BxHxMxd)

    return jax.lax.map(one, (jnp.arange(tiling.T), q_TxBxHxSxQxd))


def _slice(a_BxHxSxYxCxd: jax.Array, tiling: Tiling, tile: jax.Array) -> jax.Array:
    """Return the columns that a tile sees: [B, H, S, Y, X, d]."""
    return jax.lax.dynamic_slice_in_dim(a_BxHxSxYxCxd, tiling.first_key(tile), tiling.X, axis=4)


def _columns_forward(tiling: Tiling, *inputs: Any) -> tuple[jax.Array, Any]:
    return _columns(tiling, *inputs), inputs


def _columns_backward(tiling: Tiling, inputs: Any, do_TxBxHxSxQxd: jax.Array) -> Any:
    """Compute the weights of each tile again, so that no logits are kept; sums in float32."""
    q_TxBxHxSxQxd, k_BxHxSxYxCxd, v_BxHxSxYxCxd, far = inputs

    def one(totals: Any, of_tile: Any) -> tuple[Any, jax.Array]:
        tile, q, do = of_tile
        k, v = (_slice(a, tiling, tile) for a in (k_BxHxSxYxCxd, v_BxHxSxYxCxd))
        gradients = jax.vjp(functools.partial(_attend, tiling, tile), q, k, v, far)[1](do)
        dk, dv, dfar = totals
        dk, dv = (_add(a, b, tiling, tile) for a, b in ((dk, gradients[1]), (dv, gradients[2])))
        return (dk, dv, jax.tree.map(jnp.add, dfar, gradients[3])), gradients[0]

    zeros = jax.tree.map(
        lambda a: jnp.zeros(a.shape, jnp.float32), (k_BxHxSxYxCxd, v_BxHxSxYxCxd, far)
    )
    of_tiles = (jnp.arange(tiling.T), q_TxBxHxSxQxd, do_TxBxHxSxQxd)
    totals, dq_TxBxHxSxQxd = jax.lax.scan(one, zeros, of_tiles)
    of_keys = jax.tree.map(lambda a, like: a.astype(like.dtype), totals, inputs[1:])
    return (dq_TxBxHxSxQxd, *of_keys)


def _add(
    total_BxHxSxYxCxd: jax.Array, part_BxHxSxYxXxd: jax.Array, tiling: Tiling, tile: jax.Array
) -> jax.Array:
    """Return the gradient of `_slice`, added in place."""
    part = _slice(total_BxHxSxYxCxd, tiling, tile) + part_BxHxSxYxXxd
    start = tiling.first_key(tile)
    return jax.lax.dynamic_update_slice_in_dim(total_BxHxSxYxCxd, part, start, axis=4)


_columns.defvjp(_columns_forward, _columns_backward)


class Pool(nnx.Module):
    """One learned f x f sum over patches, shared by heads, channels, keys and values; an average at
    first: [B, N, H, d] -> [B, N/f^2, H, d]."""

    def __init__(self, factor: int) -> None:
        self.kernel = nnx.Param(jnp.full((factor, factor), 1.0 / factor**2))

    def __call__(self, x_BxNxHxd: jax.Array, grid: tuple[int, int]) -> jax.Array:
        B, _, H, d = x_BxNxHxd.shape
        f = self.kernel.shape[0]
        check_pooling(grid, f)
        patches = x_BxNxHxd.reshape(B, grid[0] // f, f, grid[1] // f, f, H, d)
        kernel = self.kernel[...][:, None, :, None, None]
        pooled = jnp.sum(patches.astype(jnp.float32) * kernel, axis=(2, 4))
        return pooled.reshape(B, -1, H, d).astype(x_BxNxHxd.dtype)


def window_macs(config: Any) -> Macs:
    """Return 4 N D^2 + 2 P D + 2 N M D for P pairs within the circles and M = N / f^2 pooled
    tokens.

    Pooling weighs every key and value once, 2 N D, which counts as a filter.
    """
    N, D = config.num_tokens, config.hidden_size
    macs = softmax_macs(config, attended=0)
    macs["attention"] = 2 * window_pairs(config.grid, config.window_size) * D
    if (f := config.down_factor) is not None:
        R, C = config.grid
        macs["attention"] += 2 * N * (R // f) * (C // f) * D
        macs["convolution"] = 2 * N * D
    return macs


class WindowAttention(SoftmaxAttention):
    """Softmax attention within circles, with the parameters of softmax attention and, with
    `down_factor`, the weights of the pooled tokens."""

    SHARDING: ClassVar[tuple[Rule, ...]] = (("pool/kernel", ()),)
    EXCHANGED: ClassVar[str | None] = (
        "keys and values along their borders, and the pooled tokens if there are any"
    )

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.pool = None if config.down_factor is None else Pool(config.down_factor)
        self.window_size = config.window_size

    @classmethod
    def macs(cls, config: Any) -> Macs:
        return window_macs(config)

    @classmethod
    def row_multiple(cls, config: Any) -> int:
        """Return the rows of a whole strip that are whole patches of pooled tokens, too."""
        return math.lcm(Tiling.of(config.grid, config.window_size).t, config.down_factor or 1)

    def attend(
        self,
        q_BxNxHxd: jax.Array,
        k_BxMxHxd: jax.Array,
        v_BxMxHxd: jax.Array,
        grid: tuple[int, int],
    ) -> jax.Array:
        """Return of as many keys as queries; the pooled ones are made here."""
        q, k, v = q_BxNxHxd, k_BxMxHxd, v_BxMxHxd
        pooled = None if self.pool is None else (self.pool(k, grid), self.pool(v, grid))
        return window_attention(q, k, v, grid, self.window_size, pooled)
