"""Encoder of T5 v1.1 and Flan-T5 (Raffel et al. 2020; gated GELU of Shazeer 2020).

B batch, L tokens, D d_model, H heads, d channels per head, F d_ff.

Parameters may be float32 or bfloat16 arrays, and matrices int8 ones (`T5Config.weights`): a layer
casts what it reads, inside the loop over layers, so that the tree is never held as float32. With
`dtype="bfloat16"` the projections q, k, v, out and wi compute in bfloat16. These remain float32,
for what T5's activations are:

- the residual stream: it is never normalised on its way through the blocks and outgrows what one
  block adds; with the 8 bits of a bfloat16 an update below 1/256 of a channel would be lost;
- norms: a mean of squares over thousands of channels;
- logits, position bias and softmax: logits are not divided by sqrt(d), so they are large;
- the gated product and the projection `wo` after it: the product of two activations is the largest
  number of the network (beyond the range of float16, the reason why others keep `wo` in float32,
  too), and its few large terms cancel in `wo`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lit_jax.models.dit.model import dtype_name
from lit_jax.models.layers import Dense, Initializer
from lit_jax.models.t5.config import T5Config
from lit_jax.models.t5.int8 import Int8Dense, Int8TokenTable

normal = nnx.initializers.normal

MASKED = float(np.finfo(np.float32).min)
"""Added to the logits of keys that are not to be attended to. Finite: a query without any key left
attends evenly to all of them, where -inf would make it NaN."""


def relative_position_bucket(
    distance: np.ndarray, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Return bucket of each distance (key position - query position): integers -> int32, same
    shape.

    Each direction has n = num_buckets // 2 buckets. The nearest e = n // 2 distances have one
    each; the rest share the others in logarithmic steps that end at `max_distance`:

        b(r) = r                                                           for r < e
               min(n - 1, e + floor((n - e) log(r / e) / log(max_distance / e)))  else
        bucket(distance) = b(|distance|) + (n if distance > 0 else 0)

    Source: Raffel et al. 2020, section 2.1. Evaluated in float32 like the implementations that
    the released weights were trained and are served with.
    """
    per_direction = num_buckets // 2
    exact = per_direction // 2
    reach = np.abs(distance)
    # Distances below `exact` take the other branch; clamping them keeps the logarithm defined.
    steps = np.log(np.maximum(reach, exact).astype(np.float32) / np.float32(exact))
    steps = steps / np.float32(np.log(max_distance / exact)) * np.float32(per_direction - exact)
    far = np.minimum(exact + steps.astype(np.int32), per_direction - 1)
    bucket = np.where(reach < exact, reach, far) + per_direction * (distance > 0)
    return bucket.astype(np.int32)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, no mean and no bias: -> float32."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32)
        return x32 * jax.lax.rsqrt(mean_square + self.eps) * scale


class TokenTable(nnx.Module):
    """Vector per token: ids int [B, L] -> float32 [B, L, D]."""

    def __init__(self, rows: int, width: int, *, init: Initializer, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(init(rngs.params(), (rows, width), jnp.float32))

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        # The rows are cast, not the table.
        return jnp.take(self.embedding[...], token_ids, axis=0).astype(jnp.float32)


DENSE: dict[str, Any] = {"float": functools.partial(Dense, use_bias=False), "int8": Int8Dense}
TABLES: dict[str, Any] = {"float": TokenTable, "int8": Int8TokenTable}
"""Storage of the matrices (`T5Config.weights`) -> the layer on one, without bias."""


class RelativeBias(nnx.Module):
    """Learned logit per bucket of distances and head, the same in all blocks."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        shape = (config.relative_attention_num_buckets, config.num_heads)
        self.embedding = nnx.Param(normal(config.d_model**-0.5)(rngs.params(), shape, jnp.float32))
        self.max_distance = config.relative_attention_max_distance

    def __call__(self, length: int) -> jax.Array:
        """Return bias of query i and key j: float32 [1, H, L, L]."""
        table = self.embedding[...].astype(jnp.float32)
        distances = np.arange(1 - length, length)
        buckets = relative_position_bucket(distances, table.shape[0], self.max_distance)
        position = jnp.arange(length)
        index_LxL = position[None, :] - position[:, None] + length - 1
        bias_LxLxH = table[buckets][index_LxL]
        return bias_LxLxH.transpose(2, 0, 1)[None]


class T5Attention(nnx.Module):
    """softmax(q k^T + position bias + mask) v per head, not scaled by 1 / sqrt(d), no biases.

    [B, L, D] -> [B, L, D] in the compute dtype. `mask_Bx1x1xL` is 0 or MASKED per key.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        D, inner = config.d_model, config.inner_width

        def dense(n_in: int, n_out: int, std: float) -> Any:
            layer = DENSE[config.weights]
            return layer(n_in, n_out, kernel_init=normal(std), dtype=config.dtype, rngs=rngs)

        # The missing 1 / sqrt(d) of the logits is in the initial queries.
        self.q = dense(D, inner, (D * config.d_kv) ** -0.5)
        self.k = dense(D, inner, D**-0.5)
        self.v = dense(D, inner, D**-0.5)
        self.out = dense(inner, D, inner**-0.5)
        self.num_heads = config.num_heads

    def __call__(
        self, x_BxLxD: jax.Array, bias_1xHxLxL: jax.Array, mask_Bx1x1xL: jax.Array | None
    ) -> jax.Array:
        B, L, _ = x_BxLxD.shape
        q, k, v = (p(x_BxLxD).reshape(B, L, self.num_heads, -1) for p in (self.q, self.k, self.v))
        logits_BxHxLxL = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32)
        logits_BxHxLxL = logits_BxHxLxL + bias_1xHxLxL
        if mask_Bx1x1xL is not None:
            logits_BxHxLxL = logits_BxHxLxL + mask_Bx1x1xL
        weights_BxHxLxL = jax.nn.softmax(logits_BxHxLxL, axis=-1).astype(v.dtype)
        o_BxLxHxd = jnp.einsum("bhlm,bmhd->blhd", weights_BxHxLxL, v)
        return self.out(o_BxLxHxd.reshape(B, L, -1))


class GatedMlp(nnx.Module):
    """wo(gelu(wi_0 x) * wi_1 x), tanh GELU, no biases: [B, L, D] -> float32 [B, L, D]."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        D, F, dtype = config.d_model, config.d_ff, config.dtype
        dense, wide = DENSE[config.weights], normal(D**-0.5)
        self.wi_0 = dense(D, F, kernel_init=wide, dtype=dtype, rngs=rngs)
        self.wi_1 = dense(D, F, kernel_init=wide, dtype=dtype, rngs=rngs)
        self.wo = dense(F, D, kernel_init=normal(F**-0.5), rngs=rngs)

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        gate, linear = (p(x_BxLxD).astype(jnp.float32) for p in (self.wi_0, self.wi_1))
        return self.wo(jax.nn.gelu(gate, approximate=True) * linear)


class T5Block(nnx.Module):
    """x += attn(norm(x)); x += mlp(norm(x)), with x in float32."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        D, eps = config.d_model, config.layer_norm_epsilon
        self.attn_norm = RMSNorm(D, eps, rngs=rngs)
        self.attn = T5Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(D, eps, rngs=rngs)
        self.mlp = GatedMlp(config, rngs=rngs)

    def __call__(
        self, x_BxLxD: jax.Array, bias_1xHxLxL: jax.Array, mask_Bx1x1xL: jax.Array | None
    ) -> jax.Array:
        x = x_BxLxD + self.attn(self.attn_norm(x_BxLxD), bias_1xHxLxL, mask_Bx1x1xL)
        return x + self.mlp(self.mlp_norm(x))


class T5Encoder(nnx.Module):
    """The network: `encoder(token_ids, mask)`, without dropout.

    token_ids  int [B, L], any length
    mask       [B, L], 1 or True for tokens to attend to, 0 or False for padding; None: all
    ->         float32 [B, L, d_model], the normalised output at all positions, padding included

    Raises ValueError when token_ids is not an integer [B, L], an id is outside the vocabulary, or
    the mask has another shape or holds anything but 0 and 1. Inside jit values are not known: an
    id that is too large turns its example into NaN, a negative one counts from the end of the
    table, and whatever is not 0 in a mask counts as 1.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        dtype_name(config.dtype)
        self.config = config
        table = TABLES[config.weights]
        self.shared = table(config.vocab_size, config.d_model, init=normal(1.0), rngs=rngs)
        self.relative_bias = RelativeBias(config, rngs=rngs)
        # One module whose parameters carry a leading axis of layers, for the loop over them.
        self.blocks = nnx.vmap(lambda r: T5Block(config, rngs=r))(rngs.split(config.num_layers))
        self.final_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, rngs=rngs)

    def __call__(self, token_ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return self._forward(token_ids, mask, keep_blocks=False)[0]

    def with_hidden_states(
        self, token_ids: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output and float32 [num_layers + 1, B, L, d_model]: the embeddings, then what
        leaves each block, where the last one is the output itself, normalised, as in transformers.
        """
        out_BxLxD, (embedded_BxLxD, blocks) = self._forward(token_ids, mask, keep_blocks=True)
        states = [embedded_BxLxD[None], blocks[:-1], out_BxLxD[None]]
        return out_BxLxD, jnp.concatenate(states)

    def _forward(
        self, token_ids: jax.Array, mask: jax.Array | None, keep_blocks: bool
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        check_tokens(token_ids, mask, self.config.vocab_size)
        embedded_BxLxD = self.shared(token_ids)
        bias_1xHxLxL = self.relative_bias(token_ids.shape[1])
        mask_Bx1x1xL = None
        if mask is not None:
            attended = jnp.asarray(mask)[:, None, None, :] != 0
            mask_Bx1x1xL = jnp.where(attended, 0.0, MASKED)

        graphdef, stacked = nnx.split(self.blocks)

        def block(x: jax.Array, layer: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            # The barrier ties the arrays to the loop. Without it the CPU backend, which has no
            # bfloat16 memory operations, would convert all layers to float32 ahead of the loop.
            arrays, layer = jax.lax.optimization_barrier((stacked, layer))
            pick = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
            x = nnx.merge(graphdef, jax.tree.map(pick, arrays))(x, bias_1xHxLxL, mask_Bx1x1xL)
            return x, x if keep_blocks else None

        layers = jnp.arange(self.config.num_layers)
        x_BxLxD, blocks = jax.lax.scan(block, embedded_BxLxD, layers)
        return self.final_norm(x_BxLxD), (embedded_BxLxD, blocks)


def check_tokens(token_ids: jax.Array, mask: jax.Array | None, vocab_size: int) -> None:
    """Raise ValueError for ids or a mask that do not fit. Values are checked where they are numbers
    already; traced ones cost no look at the device."""
    shape = jnp.shape(token_ids)
    dtype = jnp.result_type(token_ids)
    if len(shape) != 2 or not shape[1] or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"token_ids of shape {shape} and type {dtype}; they must be integers"
            " [batch, tokens], with at least one token"
        )
    if not isinstance(token_ids, jax.core.Tracer):
        ids = np.asarray(token_ids)
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        if wrong.size:
            raise ValueError(
                f"token id {wrong[0]} is not in 0..{vocab_size - 1}, the vocabulary of this"
                " encoder; use the tokenizer that belongs to it"
            )
    if mask is None:
        return
    if jnp.shape(mask) != shape:
        raise ValueError(
            f"mask of shape {jnp.shape(mask)} for token_ids of shape {shape}; it must hold one"
            " value per token"
        )
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask)
        strange = values[(values != 0) & (values != 1)]
        if strange.size:
            raise ValueError(
                f"mask holds {strange[0]}; it must hold 1 for tokens and 0 for padding"
            )
