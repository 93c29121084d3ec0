"""PixArt-alpha and PixArt-Sigma (Chen et al. 2023, 2024) with an exchangeable token mixer.

B batch, N tokens, D hidden size, H x W input, C input channels, L caption tokens (in front
of B: layers), K compressed layers. PixArt and the text-to-image LiT are this one class; they differ
in the mixer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.config import unknown_name
from lit_jax.models.attention import make_mixer
from lit_jax.models.attention.compressed import stacked_compression
from lit_jax.models.attention.cross import CrossAttention
from lit_jax.models.attention.softmax import Compression, SoftmaxAttention
from lit_jax.models.conditions import TextCondition, check_condition, drop_captions
from lit_jax.models.dit.model import (
    REMAT_POLICIES,
    Keep,
    dtype_name,
    keep_attention,
    keep_nothing,
    keep_output,
)
from lit_jax.models.layers import (
    Buffer,
    Dense,
    Mlp,
    TimestepEmbedder,
    layer_norm,
    modulate,
    patchify,
    unpatchify,
    xavier_uniform,
    zeros,
)
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.pixart.positions import position_table


def _normal(rows: int, width: int, rngs: nnx.Rngs) -> jax.Array:
    """Return [rows, width], N(0, 1/width)."""
    return jax.random.normal(rngs.params(), (rows, width)) / math.sqrt(width)


def _table(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    """Return a learned [rows, D] table of modulation vectors, N(0, 1/D) at first."""
    return nnx.Param(_normal(rows, width, rngs))


class CaptionEmbedder(nnx.Module):
    """Linear, GELU, Linear from the text encoder's channels: [B, L, C_text] -> [B, L, D].

    `null_caption` [model_max_length, C_text] is what a dropped caption is replaced by, the encoding
    of the empty prompt in trained models. The forward pass does not read it.
    """

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs) -> None:
        D, channels, length = config.hidden_size, config.caption_channels, config.model_max_length
        normal = nnx.initializers.normal(0.02)
        dtype = config.dtype
        self.fc1 = Dense(channels, D, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.fc2 = Dense(D, D, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.null_caption = Buffer(_normal(length, channels, rngs)) if length else None

    def __call__(self, tokens_BxLxC: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(tokens_BxLxC), approximate=True))


class PixArtBlock(nnx.Module):
    """adaLN-single block: x += gate * mixer(mod(LN x)); x += cross(x, y); x += gate * mlp(mod(LN
    x)). The cross-attention has no norm, no modulation and no gate."""

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs) -> None:
        D = config.hidden_size
        self.scale_shift_table = _table(6, D, rngs)
        self.attn = make_mixer(config, rngs, any_grid=True)
        self.cross_attn = CrossAttention(config, rngs=rngs)
        self.mlp = Mlp(D, config.mlp_width, dtype=config.dtype, rngs=rngs)

    def __call__(
        self,
        x_BxNxD: jax.Array,
        y_BxLxD: jax.Array,
        mask_BxL: jax.Array | None,
        modulation_Bx6xD: jax.Array,
        grid: tuple[int, int],
        compress: Compression | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output, and what the heads returned before their projection: [B, N, D]
        each."""
        table_6xD = self.scale_shift_table[...].astype(modulation_Bx6xD.dtype)
        vectors = jnp.moveaxis(table_6xD + modulation_Bx6xD, 1, 0)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = vectors
        x = x_BxNxD
        u = modulate(layer_norm(x), shift_attn, scale_attn)
        if isinstance(self.attn, SoftmaxAttention):
            heads = self.attn.heads(u, grid, compress)
        else:
            heads = self.attn.heads(u, grid)
        attended = self.attn.out(heads)
        x = x + gate_attn[:, None] * attended
        x = x + self.cross_attn(x, y_BxLxD, mask_BxL)
        x = x + gate_mlp[:, None] * self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp))
        return x, heads


class PixArtFinalLayer(nnx.Module):
    """Layer norm modulated by a table plus the time embedding itself, then the linear map to
    patches: [B, N, D] -> [B, N, p*p*C_out]."""

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs) -> None:
        D = config.hidden_size
        features = config.patch_size**2 * config.out_channels
        self.scale_shift_table = _table(2, D, rngs)
        self.linear = Dense(D, features, kernel_init=zeros, dtype=config.dtype, rngs=rngs)

    def __call__(self, x_BxNxD: jax.Array, t_BxD: jax.Array) -> jax.Array:
        table_2xD = self.scale_shift_table[...].astype(t_BxD.dtype)
        shift, scale = (table_2xD[row] + t_BxD for row in (0, 1))
        return self.linear(modulate(layer_norm(x_BxNxD), shift, scale))


class PixArt(nnx.Module):
    """The network: `model(x, t, cond)`.

    x     float [B, H, W, C], NHWC; height and width are any multiples of the patch size
    t     int or float [B], original timesteps 0..999
    cond  TextCondition with tokens [B, L, caption_channels], any L
    ->    float32 [B, H, W, 2C] with `learn_sigma` (noise, then variance channels), else
          [B, H, W, C]

    Raises ValueError for x, t or cond of another shape, for micro-conditions that are missing or
    superfluous, and for a caption whose mask leaves no token (see TextCondition for what happens
    inside jit). Caption dropout belongs to the training step, so that a teacher and a student see
    the same captions.
    """

    def __init__(self, config: PixArtConfig, *, rngs: nnx.Rngs) -> None:
        if config.remat not in REMAT_POLICIES:
            raise unknown_name("remat policy", config.remat, REMAT_POLICIES)
        D, dtype = config.hidden_size, dtype_name(config.dtype)
        inputs = config.patch_size**2 * config.in_channels
        normal = nnx.initializers.normal(0.02)
        self.config = config
        self.x_embedder = Dense(
            inputs, D, kernel_init=xavier_uniform(inputs, D), dtype=dtype, rngs=rngs
        )
        # The official recipe leaves this one bias at its framework's default.
        bound = 1 / math.sqrt(inputs)
        self.x_embedder.bias = nnx.Param(
            jax.random.uniform(rngs.params(), (D,), minval=-bound, maxval=bound)
        )
        self.t_embedder = TimestepEmbedder(D, dtype=dtype, rngs=rngs)
        self.t_block = Dense(D, 6 * D, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.y_embedder = CaptionEmbedder(config, rngs=rngs)
        micro = config.micro_condition
        self.csize_embedder = TimestepEmbedder(D // 3, dtype=dtype, rngs=rngs) if micro else None
        self.ar_embedder = TimestepEmbedder(D // 3, dtype=dtype, rngs=rngs) if micro else None
        # Modules whose parameters carry a leading axis of layers; the forward pass scans over it.
        self.blocks = nnx.vmap(lambda r: PixArtBlock(config, rngs=r))(rngs.split(config.depth))
        kv = config.kv_compress_config
        self.kv_compress = None if kv is None else stacked_compression(kv, D, rngs)
        self.final_layer = PixArtFinalLayer(config, rngs=rngs)

    def __call__(self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond: TextCondition) -> jax.Array:
        return self._forward(x_BxHxWxC, t_B, cond, keep_nothing)[0]

    def with_activations(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond: TextCondition
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the output and {"embedding": [B, N, D], "blocks": [depth, B, N, D]} for
        diagnosis."""
        out, embedding_BxNxD, blocks = self._forward(x_BxHxWxC, t_B, cond, keep_output)
        return out, {"embedding": embedding_BxNxD, "blocks": jnp.concatenate(blocks)}

    def with_attention(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond: TextCondition
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output and, of every layer, what the heads of its self-attention returned
        before their projection, side by side: [L, B, N, D] in the compute dtype."""
        out, _, heads = self._forward(x_BxHxWxC, t_B, cond, keep_attention)
        return out, jnp.concatenate(heads)

    def null_caption(self) -> jax.Array:
        """Return the stored caption [model_max_length, caption_channels] that replaces dropped
        ones.

        Raises ValueError when the model holds none.
        """
        if self.y_embedder.null_caption is None:
            raise ValueError(
                "this model holds no null caption (model_max_length=None, as in files of"
                " diffusers); encode the empty prompt with the text encoder instead"
            )
        return self.y_embedder.null_caption[...]

    def null_condition(self, cond: TextCondition) -> TextCondition:
        """Return `cond` with every caption replaced by the null caption: the unconditional half of
        guidance, under the masks of the captions as in the official sampler."""
        everyone = jnp.ones(jnp.shape(cond.tokens)[:1], bool)
        return drop_captions(cond, everyone, self.null_caption())

    def embed_conditions(self, t_B: jax.Array, cond: TextCondition) -> tuple[jax.Array, jax.Array]:
        """Return time (with image size and aspect ratio, if the model knows them) [B, D] and
        caption tokens [B, L, D]."""
        t_BxD = self.t_embedder(t_B)
        if self.csize_embedder is not None and self.ar_embedder is not None:
            sizes = jnp.asarray(cond.img_hw, jnp.float32).reshape(-1)  # height, width by turns
            ratios = jnp.asarray(cond.aspect_ratio, jnp.float32).reshape(-1)
            size = self.csize_embedder(sizes).reshape(t_BxD.shape[0], -1)
            t_BxD = t_BxD + jnp.concatenate([size, self.ar_embedder(ratios)], axis=-1)
        return t_BxD, self.y_embedder(jnp.asarray(cond.tokens))

    def _forward(
        self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond: TextCondition, keep: Keep
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """Return the output, the embedded input [B, N, D], and what is kept of the blocks, stacked,
        one array per run of layers that are alike."""
        config = self.config
        self._check_input(x_BxHxWxC, t_B, cond)
        _, H, W, _ = x_BxHxWxC.shape
        grid = (H // config.patch_size, W // config.patch_size)
        x_BxNxD = self.x_embedder(patchify(x_BxHxWxC, config.patch_size))
        x_BxNxD = x_BxNxD + jnp.asarray(position_table(config, grid), config.dtype)
        t_BxD, y_BxLxD = self.embed_conditions(t_B, cond)
        mask_BxL = None if cond.mask is None else jnp.asarray(cond.mask) != 0
        modulation = self.t_block(jax.nn.silu(t_BxD)).reshape(-1, 6, config.hidden_size)

        def call(block: PixArtBlock, x: jax.Array, compress: Compression | None) -> Any:
            x, heads = block(x, y_BxLxD, mask_BxL, modulation, grid, compress)
            return x, keep(x, heads)

        z_BxNxD, kept = self._run_blocks(call, x_BxNxD)
        out = self.final_layer(z_BxNxD, t_BxD).astype(jnp.float32)
        return unpatchify(out, grid, config.patch_size), x_BxNxD, kept

    def _run_blocks(
        self, call: Callable[..., tuple[jax.Array, jax.Array | None]], x_BxNxD: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Return the last block's output, and what `call` keeps of every block: one scan per run of
        layers that are alike, so that a model without compression is a single scan."""
        config, kept = self.config, []
        graphdef, stacked = nnx.split(self.blocks)
        kv_graphdef, kv_stacked = nnx.split(self.kv_compress)

        def step(x: jax.Array, parameters: Any) -> tuple[jax.Array, jax.Array | None]:
            of_block, of_compression = parameters
            compress = None if of_compression is None else nnx.merge(kv_graphdef, of_compression)
            return call(nnx.merge(graphdef, of_block), x, compress)

        if (policy := REMAT_POLICIES[config.remat]) is not None:
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        for layers, places in _runs(config):
            of_run = (_of_layers(stacked, layers), _of_layers(kv_stacked, places))
            x_BxNxD, outputs = jax.lax.scan(step, x_BxNxD, of_run, unroll=config.scan_unroll)
            kept += [] if outputs is None else [outputs]
        return x_BxNxD, kept

    def _check_input(self, x_BxHxWxC: jax.Array, t_B: jax.Array, cond: TextCondition) -> None:
        patch, channels = self.config.patch_size, self.config.in_channels
        shape = x_BxHxWxC.shape
        if len(shape) != 4 or shape[3] != channels or not all(shape):
            raise ValueError(
                f"input of shape {shape}; this model takes [batch, height, width, channels] ="
                f" [B, H, W, {channels}]"
            )
        if shape[1] % patch or shape[2] % patch:
            raise ValueError(
                f"input of {shape[1]} x {shape[2]}; height and width must be multiples of"
                f" patch_size {patch}"
            )
        if jnp.shape(t_B) != shape[:1]:
            raise ValueError(
                f"t of shape {jnp.shape(t_B)} for input of shape {shape}; it must hold one value"
                f" per image, [{shape[0]}]"
            )
        check_condition(cond, self.config, shape[0])


def _runs(config: PixArtConfig) -> Iterator[tuple[slice, slice | None]]:
    """Yield maximal runs of consecutive layers that are alike: (their place among the blocks, their
    place among the compressed layers or None)."""
    compressed = config.compressed_layers
    for is_compressed, run in itertools.groupby(range(config.depth), compressed.__contains__):
        layers = list(run)
        start = compressed.index(layers[0]) if is_compressed else 0
        places = slice(start, start + len(layers)) if is_compressed else None
        yield slice(layers[0], layers[-1] + 1), places


def _of_layers(stacked: Any, place: slice | None) -> Any:
    """Return stacked parameters of some layers, None for none; a slice of all of them is no
    copy."""
    return None if place is None else jax.tree.map(lambda leaf: leaf[place], stacked)
