"""DiG (Zhu et al. 2024): a diffusion transformer of gated linear attention, which runs along the
tokens in one direction, so that the layers take turns in the order in which they see them.

B batch, N tokens, D hidden size, L layers, R x C token grid. Layer i sees, by i mod 4: the tokens
by rows; the same backwards; by columns; the same backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.config import DiGConfig
from lit_jax.models.attention.gated import GatedAttention
from lit_jax.models.attention.linear import depthwise_conv
from lit_jax.models.dit import FinalLayer, Keep, LabelledTransformer, checkpointed
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
    """adaLN-Zero block, then the convolution of the whole residual stream (DiG, section 3.3)."""

    def __init__(self, config: DiGConfig, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        self.attn = GatedAttention(config, rngs=rngs)
        self.mlp = SwiGLU(D, config.mlp_width, dtype=dtype, rngs=rngs)
        self.adaln = Dense(D, 6 * D, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.dwc = TokenConv(D, config.conv_kernel_size) if config.dw_conv else None

    def __call__(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, grid: Grid
    ) -> tuple[jax.Array, jax.Array]:
        """The output, and what the heads returned before their projection. `grid` has the rows and
        columns of the order in which the tokens come."""
        modulation = jnp.split(self.adaln(jax.nn.silu(c_BxD)), 6, axis=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x_BxNxD
        heads = self.attn.heads(modulate(layer_norm(x), shift_attn, scale_attn), grid)
        x = x + gate_attn[:, None] * self.attn.out(heads)
        x = x + gate_mlp[:, None] * self.mlp(modulate(layer_norm(x), shift_mlp, scale_mlp))
        return x if self.dwc is None else self.dwc(x, grid), heads


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
    """[I | 0]: the stream passes, the connection adds nothing."""
    return jnp.eye(*shape, dtype=dtype)


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

        self.skip = nnx.vmap(skip)(rngs.split(config.skips)) if config.skips else None
        final = FinalLayer if config.num_classes else UnconditionalFinalLayer
        self.final_layer = final(config, rngs=rngs)

    def _run_layers(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, keep: Keep
    ) -> tuple[jax.Array, Any]:
        """What is kept of the layers has its tokens by rows, whatever order the layer saw."""
        depth, skips = self.config.depth, self.config.skips
        if not skips:
            x, kept, _ = self._run(x_BxNxD, c_BxD, keep, range(depth))
            return x, kept
        # The first layers' outputs wait for the last layers, which take them in reverse.
        x, first, waiting = self._run(x_BxNxD, c_BxD, keep, range(skips), collect=True)
        x, middle, _ = self._run(x, c_BxD, keep, range(skips, depth - skips))
        waiting = jax.tree.map(lambda leaf: leaf[::-1], waiting)
        x, last, _ = self._run(x, c_BxD, keep, range(depth - skips, depth), waiting=waiting)
        return x, _concatenate([first, middle, last])

    def _run(
        self,
        x_BxNxD: jax.Array,
        c_BxD: jax.Array,
        keep: Keep,
        layers: range,
        collect: bool = False,
        waiting: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """The layers `layers`: their result, what is kept of each, and with `collect` the output of
        each. `waiting` [layers, B, N, D] are earlier outputs, one per layer, joined by its skip.

        A loop over groups of PERIOD layers, whose orders are those of every group; then the rest.
        """
        config = self.config
        graphdef, stacked = nnx.split(self.blocks)
        skip_graphdef, skips = nnx.split(self.skip)
        stacked = jax.tree.map(lambda leaf: leaf[layers.start : layers.stop], stacked)
        inputs = (stacked, None if waiting is None else (skips, waiting))

        def run(x: jax.Array, inputs: Any, layer: int) -> tuple[jax.Array, Any]:
            parameters, join = inputs
            if join is not None:
                skip, earlier = join
                merged = jnp.concatenate([x, earlier], axis=-1)
                x = nnx.merge(skip_graphdef, skip)(merged)
            y, heads = nnx.merge(graphdef, parameters)(x, c_BxD, self._grid(layer))
            kept = keep(self._by_rows(y, layer), self._by_rows(heads, layer))
            y = self._reorder(y, layer)
            return y, (kept, y if collect else None)

        def group(x: jax.Array, inputs: Any, size: int = PERIOD) -> tuple[jax.Array, Any]:
            outs = []
            for i in range(size):
                # The number of a layer is static: it decides the order of the tokens.
                step = checkpointed(lambda x, p, layer=layers.start + i: run(x, p, layer), config)
                x, out = step(x, jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
                outs.append(out)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

        whole = len(layers) // PERIOD * PERIOD
        grouped = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, PERIOD, *leaf.shape[1:]), inputs
        )
        x, outs, parts = x_BxNxD, None, []
        if whole:
            unroll = -(-config.scan_unroll // PERIOD)
            x, outs = jax.lax.scan(group, x, grouped, unroll=unroll)
            parts.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outs))
        if rest := len(layers) - whole:
            x, outs = group(x, jax.tree.map(lambda leaf: leaf[whole:], inputs), rest)
            parts.append(outs)
        kept, collected = _concatenate(parts)
        return x, kept, collected

    def _by_columns(self, layer: int) -> bool:
        return self.config.quad_dir and layer % PERIOD >= 2

    def _grid(self, layer: int) -> Grid:
        """Rows and columns of the order in which a layer sees the tokens."""
        rows, columns = self.config.grid
        return (columns, rows) if self._by_columns(layer) else (rows, columns)

    def _reorder(self, x_BxNxD: jax.Array, layer: int) -> jax.Array:
        """What lies between two layers: the tokens turned round, after odd layers also the grid
        transposed (spatial reorient-and-enhance module, DiG, section 3.3)."""
        x = x_BxNxD[:, ::-1] if self.config.bid_mode == "layer" else x_BxNxD
        if not self.config.quad_dir or layer % 2 == 0:
            return x
        return _transposed(x, self._grid(layer))

    def _by_rows(self, x_BxNxD: jax.Array, layer: int) -> jax.Array:
        """The tokens of a layer in the order in which they entered the network."""
        backwards = self.config.bid_mode == "layer" and layer % 2 == 1
        x = x_BxNxD[:, ::-1] if backwards else x_BxNxD
        return _transposed(x, self._grid(layer)) if self._by_columns(layer) else x


def _transposed(x_BxNxD: jax.Array, grid: Grid) -> jax.Array:
    """Tokens of a grid by its columns instead of its rows."""
    B, N, D = x_BxNxD.shape
    return x_BxNxD.reshape(B, *grid, D).transpose(0, 2, 1, 3).reshape(B, N, D)


def _concatenate(parts: Sequence[Any]) -> Any:
    """Trees of stacked arrays, one after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
