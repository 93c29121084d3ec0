"""DiG (Zhu et al. 2024): a diffusion transformer of gated linear attention, which runs along the
tokens in one direction, so that the layers take turns in the order in which they see them.

B batch, N tokens, D hidden size, L layers, R x C token grid. Layer i sees, by i mod 4: the tokens
by rows; the same backwards; by columns; the same backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention.gated import GatedAttention
from lit_jax.models.attention.linear import depthwise_conv
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dit.model import FinalLayer, Keep, LabelledTransformer, checkpointed
from lit_jax.models.layers import Dense, layer_norm, modulate, zeros

PERIOD = 4
"""Layers after which the order of the tokens is again the first one."""

Grid = tuple[int, int]


class SwiGLU(nnx.Module):
    """W_down (silu(g) * y) with [g | y] = x W_gate, no biases: [..., width] -> [..., width]."""

    def __init__(self, width: int, hidden: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.gate = Dense(width, 2 * hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.down = Dense(hidden, width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, y = jnp.split(self.gate(x), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * y)


class TokenConv(nnx.Module):
    """Depth-wise convolution of the tokens on their grid, the identity at first: [B, N, D]."""

    def __init__(self, width: int, kernel_size: int) -> None:
        centre = kernel_size // 2
        self.kernel = nnx.Param(
            jnp.zeros((kernel_size, kernel_size, width)).at[centre, centre].set(1.0)
        )
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x_BxNxD: jax.Array, grid: Grid) -> jax.Array:
        one_head = x_BxNxD[:, :, None]
        out_BxNx1xD = depthwise_conv(one_head, self.kernel[...], self.bias[...], grid)
        return out_BxNx1xD[:, :, 0].astype(x_BxNxD.dtype)


class DiGBlock(nnx.Module):
    """adaLN-Zero block, and the convolution of the whole residual stream after it."""

    def __init__(self, config: DiGConfig, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        self.attn = GatedAttention(config, rngs=rngs)
        self.mlp = SwiGLU(D, config.mlp_width, dtype=dtype, rngs=rngs)
        self.adaln = Dense(D, 6 * D, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.dwc = TokenConv(D, config.conv_kernel_size) if config.dw_conv else None

    def __call__(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, grid: Grid
    ) -> tuple[jax.Array, jax.Array]:
        """Return the stream before `enhance`, and what the heads returned before their
        projection."""
        modulation = jnp.split(self.adaln(jax.nn.silu(c_BxD)), 6, axis=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x_BxNxD
        heads = self.attn.heads(modulate(layer_norm(x), shift_attn, scale_attn), grid)
        x = x + gate_attn[:, None] * self.attn.out(heads)
        x = x + gate_mlp[:, None] * self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp))
        return x, heads

    def enhance(self, x_BxNxD: jax.Array, grid: Grid) -> jax.Array:
        """Return the convolution on the rows and columns of the order in which the tokens come."""
        return x_BxNxD if self.dwc is None else self.dwc(x_BxNxD, grid)


class UnconditionalFinalLayer(nnx.Module):
    """Layer norm and the linear map to patches; without labels the condition does not count."""

    def __init__(self, config: DiGConfig, *, rngs: nnx.Rngs) -> None:
        features = config.patch_size**2 * config.out_channels
        self.linear = Dense(
            config.hidden_size, features, kernel_init=zeros, dtype=config.dtype, rngs=rngs
        )

    def __call__(self, x_BxNxD: jax.Array, c_BxD: jax.Array) -> jax.Array:
        return self.linear(layer_norm(x_BxNxD))


def _closed_skip(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Return [I | 0]: the stream passes, the connection adds nothing."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class DiG(LabelledTransformer):
    """The network: see LabelledTransformer. Only with a depth that is a multiple of 4 do the tokens
    leave the last layer in the order in which they entered the first; the official network reads
    patches off them in any case, and so does this one.
    """

    config: DiGConfig

    def __init__(self, config: DiGConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        D, dtype = config.hidden_size, config.dtype
        self.blocks = nnx.vmap(lambda r: DiGBlock(config, rngs=r))(rngs.split(config.depth))
        # Layer L/2 + 1 + i has skip i: the input of its modulation is [x | earlier] W + b.
        init = _closed_skip if config.skip_zero else None

        def skip(r: nnx.Rngs) -> Dense:
            return Dense(2 * D, D, kernel_init=init, dtype=dtype, rngs=r)

        self.skip: Any = nnx.vmap(skip)(rngs.split(config.skips)) if config.skips else None
        final = FinalLayer if config.num_classes else UnconditionalFinalLayer
        self.final_layer = final(config, rngs=rngs)

    def _run_layers(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, keep: Keep
    ) -> tuple[jax.Array, Any]:
        """Return what is kept of the layers has its tokens by rows, whatever order the layer
        saw."""
        depth, skips = self.config.depth, self.config.skips
        if skips:
            # The first layers' outputs wait for the last layers, which take them in reverse.
            x, first, waiting = self._scan(x_BxNxD, c_BxD, keep, range(skips))
            x, middle, _ = self._scan(x, c_BxD, keep, range(skips, depth - skips))
            x, last, _ = self._scan(x, c_BxD, keep, range(depth - skips, depth), waiting[::-1])
            parts = [first, middle, last]
        else:
            x, kept, _ = self._scan(x_BxNxD, c_BxD, keep, range(depth))
            parts = [kept]
        if parts[0] is None:
            return x, None
        kept_LxBxNxD = jnp.concatenate(parts)
        return x, jnp.stack([self._by_rows(kept_LxBxNxD[i], i) for i in range(depth)])

    def _scan(
        self,
        x_BxNxD: jax.Array,
        c_BxD: jax.Array,
        keep: Keep,
        layers: range,
        waiting_LxBxNxD: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Return the result of `layers`; stacked, what is kept of each; and the output of each when
        skips wait for them. `waiting` are such outputs, one per layer, joined by its skip."""
        graphdef, stacked = nnx.split(self.blocks)
        skip_graphdef, skips = nnx.split(self.skip)
        stacked = jax.tree.map(lambda leaf: leaf[layers.start : layers.stop], stacked)
        joins = None if waiting_LxBxNxD is None else (skips, waiting_LxBxNxD)
        collect = layers.stop == self.config.skips

        def layer(x: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
            index, parameters, join = inputs
            if join is not None:
                skip, earlier = join
                joined = jnp.concatenate([x, earlier], axis=-1)
                x = nnx.merge(skip_graphdef, skip)(joined)
            block = nnx.merge(graphdef, parameters)
            y, heads = block(x, c_BxD, self.config.grid)
            y = self._on_grid(block.enhance, y, index)
            after = self._reorder(y, index)
            return after, (keep(y, heads), after if collect else None)

        x, (kept, outputs) = jax.lax.scan(
            checkpointed(layer, self.config),
            x_BxNxD,
            (jnp.arange(layers.start, layers.stop), stacked, joins),
            unroll=min(self.config.scan_unroll, len(layers)),
        )
        return x, kept, outputs

    def _on_grid(
        self, function: Callable[[jax.Array, Grid], jax.Array], x_BxNxD: jax.Array, layer: jax.Array
    ) -> jax.Array:
        """Return `function(x, grid)` for the rows and columns of the order in which a layer sees
        x."""
        rows, columns = self.config.grid
        if rows == columns or not self.config.quad_dir:
            return function(x_BxNxD, (rows, columns))
        return jax.lax.cond(
            layer % PERIOD >= 2,
            lambda x: function(x, (columns, rows)),
            lambda x: function(x, (rows, columns)),
            x_BxNxD,
        )

    def _reorder(self, x_BxNxD: jax.Array, layer: jax.Array) -> jax.Array:
        """Return what lies between two layers: the tokens turned round, after odd layers also the
        grid transposed (spatial reorient-and-enhance module, DiG, section 3.3)."""
        x = x_BxNxD[:, ::-1] if self.config.bid_mode == "layer" else x_BxNxD
        if not self.config.quad_dir:
            return x
        return jnp.where(layer % 2 == 1, self._on_grid(_transposed, x, layer), x)

    def _by_rows(self, x_BxNxD: jax.Array, layer: int) -> jax.Array:
        """Return the tokens of a layer in the order in which they entered the network."""
        backwards = self.config.bid_mode == "layer" and layer % 2 == 1
        x = x_BxNxD[:, ::-1] if backwards else x_BxNxD
        by_columns = self.config.quad_dir and layer % PERIOD >= 2
        return _transposed(x, self.config.grid[::-1]) if by_columns else x


def _transposed(x_BxNxD: jax.Array, grid: Grid) -> jax.Array:
    """Return tokens of a grid by its columns instead of its rows."""
    B, N, D = x_BxNxD.shape
    return x_BxNxD.reshape(B, *grid, D).transpose(0, 2, 1, 3).reshape(B, N, D)
