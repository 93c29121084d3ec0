"""Network of the family of the tests: x += gate * (mixer(mod(LN x)) + mlp(mod(LN x)))."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention import make_mixer
from lit_jax.models.dit.model import FinalLayer, Keep, LabelledTransformer, checkpointed
from lit_jax.models.layers import Dense, Mlp, layer_norm, modulate
from support.additions.parallel.config import ParallelConfig


class Block(nnx.Module):
    """Attention and MLP side by side."""

    def __init__(self, config: ParallelConfig, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        self.attn = make_mixer(config, rngs)
        self.mlp = Mlp(D, config.mlp_width, dtype=dtype, rngs=rngs)
        self.adaln = Dense(D, 3 * D, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, grid: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        shift, scale, gate = jnp.split(self.adaln(jax.nn.silu(c_BxD)), 3, axis=-1)
        x = modulate(layer_norm(x_BxNxD), shift, scale)
        heads = self.attn.heads(x, grid)
        return x_BxNxD + gate[:, None] * (self.attn.out(heads) + self.mlp(x)), heads


class Parallel(LabelledTransformer):
    """Parallel blocks, one loop over their stacked parameters."""

    config: ParallelConfig

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.blocks = nnx.vmap(lambda r: Block(config, rngs=r))(rngs.split(config.depth))
        self.final_layer = FinalLayer(config, rngs=rngs)

    def _run_layers(
        self, x_BxNxD: jax.Array, c_BxD: jax.Array, keep: Keep
    ) -> tuple[jax.Array, Any]:
        graphdef, stacked = nnx.split(self.blocks)

        def block(x: jax.Array, parameters: Any) -> tuple[jax.Array, jax.Array | None]:
            x, heads = nnx.merge(graphdef, parameters)(x, c_BxD, self.config.grid)
            return x, keep(x, heads)

        run: Any = checkpointed(block, self.config)  # type: ignore[arg-type]
        return jax.lax.scan(run, x_BxNxD, stacked)
