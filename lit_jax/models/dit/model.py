"""Diffusion transformer (Peebles & Xie 2023) with an exchangeable token mixer.

B batch, N tokens, D hidden size, L layers, H x W input, C input channels. DiT, LiT and CLEAR are
this one class; they differ in the mixer of their config.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lit_jax.config import unknown_name
from lit_jax.models.attention import make_mixer
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.layers import (
    Dense,
    LabelEmbedder,
    Mlp,
    TimestepEmbedder,
    layer_norm,
    modulate,
    patchify,
    unpatchify,
    xavier_uniform,
    zeros,
)
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.registry import LabelledConfig

# What a layer may compute in; parameters are float32 in any case. Not float16: the CPU backend
# refuses the product of softmax attention, float16 inputs to float32 logits.
DTYPES = ("float32", "bfloat16")

# What a block keeps for the backward pass.
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# What the forward pass returns of every block besides its own result: a function of the block's
# output and of what the heads of its attention returned, both [B, N, D].
Keep = Callable[[jax.Array, jax.Array], jax.Array | None]


def keep_nothing(x_BxNxD: jax.Array, heads_BxNxD: jax.Array) -> None:
    return None


def keep_output(x_BxNxD: jax.Array, heads_BxNxD: jax.Array) -> jax.Array:
    return x_BxNxD


def keep_attention(x_BxNxD: jax.Array, heads_BxNxD: jax.Array) -> jax.Array:
    return heads_BxNxD


def dtype_name(dtype: Any) -> str:
    """Return the row of DTYPES that `dtype` means: a name, a numpy dtype or a scalar type like
    `jnp.bfloat16`. Raises ValueError for any other, listing the rows."""
    name = dtype
    if not isinstance(dtype, str):
        with contextlib.suppress(TypeError):
            name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return name


def checkpointed(block: Callable[..., Any], config: LabelledConfig) -> Callable[..., Any]:
    """Return `block` with what it keeps for the backward pass, by the row of REMAT_POLICIES."""
    policy = REMAT_POLICIES[config.remat]
    return block if policy is None else jax.checkpoint(block, policy=policy, prevent_cse=False)


class DiTBlock(nnx.Module):
    """adaLN-Zero block: x += gate * mixer(mod(LN x)); x += gate * mlp(mod(LN x))."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        self.attn = make_mixer(config, rngs)
        self.mlp = Mlp(D, config.mlp_width, dtype=dtype, rngs=rngs)
        self.adaln = Dense(D, 6 * D, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, grid: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output, and what the heads returned before their projection: [B, N, D]
        each."""
        modulation = jnp.split(self.adaln(jax.nn.silu(c_BxD)), 6, axis=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x_BxNxD
        heads = self.attn.heads(modulate(layer_norm(x), shift_attn, scale_attn), grid)
        attended = self.attn.out(heads)
        x = x + gate_attn[:, None] * attended
        x = x + gate_mlp[:, None] * self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp))
        return x, heads


class FinalLayer(nnx.Module):
    """Modulated layer norm and the linear map to patches: [B, N, D] -> [B, N, p*p*C_out]."""

    def __init__(self, config: LabelledConfig, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        features = config.patch_size**2 * config.out_channels
        self.adaln = Dense(D, 2 * D, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.linear = Dense(D, features, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x_BxNxD: jax.Array, c_BxD: jax.Array) -> jax.Array:
        shift, scale = jnp.split(self.adaln(jax.nn.silu(c_BxD)), 2, axis=-1)
        return self.linear(modulate(layer_norm(x_BxNxD), shift, scale))


class LabelledTransformer(nnx.Module):
    """A transformer on patches, conditioned on class labels: `model(x, t, cond)`. What its layers
    are, and how they are run, is the matter of the class below.

    x     float [B, H, W, C], NHWC, of the size in `config`
    t     int or float [B], original timesteps 0..999
    cond  int [B] labels (`num_classes` is the null class), None for an unconditional model
    ->    float32 [B, H, W, 2C] with `learn_sigma` (noise, then variance channels), else
          [B, H, W, C]

    Raises ValueError when x has another size, t or cond is not one value per image, cond is missing
    or superfluous, or a label outside the table is given. Inside jit the values of labels are not
    known: one that is too large turns its image into NaN, a negative one counts from the end of
    the table. Label dropout belongs to the training step, so that a teacher and a student see the
    same labels.
    """

    final_layer: Any

    def __init__(self, config: LabelledConfig, *, rngs: nnx.Rngs) -> None:
        if config.remat not in REMAT_POLICIES:
            raise unknown_name("remat policy", config.remat, REMAT_POLICIES)
        D, dtype = config.hidden_size, dtype_name(config.dtype)
        patch_features = config.patch_size**2 * config.in_channels
        self.config = config
        self.x_embedder = Dense(
            patch_features, D, kernel_init=xavier_uniform(patch_features, D), dtype=dtype, rngs=rngs
        )
        self.t_embedder = TimestepEmbedder(D, dtype=dtype, rngs=rngs)
        rows = config.num_classes + (config.null_label is not None)
        self.y_embedder = LabelEmbedder(rows, D, dtype=dtype, rngs=rngs) if rows else None

    def __call__(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond_B: jax.Array | None = None
    ) -> jax.Array:
        return self._forward(x_BxHxWxC, t_B, cond_B, keep_nothing)[0]

    def with_activations(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond_B: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the output and {"embedding": [B, N, D], "blocks": [depth, B, N, D]} for
        diagnosis."""
        out, embedding_BxNxD, blocks = self._forward(x_BxHxWxC, t_B, cond_B, keep_output)
        return out, {"embedding": embedding_BxNxD, "blocks": blocks}

    def with_attention(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond_B: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output and, of every layer, what the heads of its attention returned before
        their projection, side by side: [L, B, N, D] in the compute dtype."""
        out, _, heads_LxBxNxD = self._forward(x_BxHxWxC, t_B, cond_B, keep_attention)
        return out, heads_LxBxNxD

    def _forward(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond_B: jax.Array | None, keep: Keep
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Return the output, the embedded input [B, N, D], and what is kept of the blocks,
        stacked."""
        config = self.config
        self._check_input(x_BxHxWxC, t_B, cond_B)
        x_BxNxD = self.x_embedder(patchify(x_BxHxWxC, config.patch_size))
        position_NxD = sincos_position_table(config.grid, config.hidden_size)
        x_BxNxD = x_BxNxD + jnp.asarray(position_NxD, config.dtype)
        c_BxD = self.t_embedder(t_B)
        if self.y_embedder is not None and cond_B is not None:
            c_BxD = c_BxD + self.y_embedder(cond_B)

        y_BxNxD, kept = self._run_layers(x_BxNxD, c_BxD, keep)
        out = self.final_layer(y_BxNxD, c_BxD).astype(jnp.float32)
        return unpatchify(out, config.grid, config.patch_size), x_BxNxD, kept

    def _run_layers(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, keep: Keep
    ) -> tuple[jax.Array, Any]:
        """Return the output of the last layer, and what is kept of all of them, stacked."""
        raise NotImplementedError

    def _check_input(self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond_B: jax.Array | None) -> None:
        expected = (*self.config.image_size, self.config.in_channels)
        if x_BxHxWxC.ndim != 4 or x_BxHxWxC.shape[1:] != expected:
            raise ValueError(
                f"input of shape {x_BxHxWxC.shape}; this model takes [batch, height, width,"
                f" channels] = [B, {', '.join(map(str, expected))}]"
            )
        for name, values in (("t", t_B), ("cond", cond_B)):
            if values is not None and jnp.shape(values) != x_BxHxWxC.shape[:1]:
                raise ValueError(
                    f"{name} of shape {jnp.shape(values)} for input of shape {x_BxHxWxC.shape};"
                    f" it must hold one value per image, [{x_BxHxWxC.shape[0]}]"
                )
        if (cond_B is None) != (self.y_embedder is None):
            raise ValueError(
                f"labels are {'missing' if cond_B is None else 'given'}, but the model has"
                f" num_classes={self.config.num_classes}"
            )
        if cond_B is not None and not isinstance(cond_B, jax.core.Tracer):
            self._check_labels(np.asarray(cond_B))

    def _check_labels(self, cond_B: np.ndarray) -> None:
        """Check labels of concrete values; traced ones are not checked."""
        rows = self.config.num_classes + (self.config.null_label is not None)
        wrong = cond_B[(cond_B < 0) | (cond_B >= rows)]
        if wrong.size:
            null = "" if self.config.null_label is None else f", {rows - 1} being the null class"
            raise ValueError(f"label {wrong[0]} is not in 0..{rows - 1}{null}")


class DiT(LabelledTransformer):
    """Layers that are all alike, one loop over their stacked parameters."""

    config: DiTConfig

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        # One module whose parameters carry a leading depth axis; the forward pass scans over it.
        self.blocks = nnx.vmap(lambda r: DiTBlock(config, rngs=r))(rngs.split(config.depth))
        self.final_layer = FinalLayer(config, rngs=rngs)

    def _run_layers(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, keep: Keep
    ) -> tuple[jax.Array, Any]:
        graphdef, stacked = nnx.split(self.blocks)

        def block(x: jax.Array, parameters: Any) -> tuple[jax.Array, jax.Array | None]:
            x, heads = nnx.merge(graphdef, parameters)(x, c_BxD, self.config.grid)
            return x, keep(x, heads)

        block = checkpointed(block, self.config)
        return jax.lax.scan(block, x_BxNxD, stacked, unroll=self.config.scan_unroll)
