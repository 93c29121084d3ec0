"""Focused linear attention (FLatten Transformer), the stronger baseline of LiT's Table 1.

B batch, N tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention.linear import LinearAttention, feature_map
from lit_jax.sharding import Rule

FOCUSING_FACTOR = 3


def focus(x_BxNxD: jax.Array, factor: int = FOCUSING_FACTOR) -> jax.Array:
    """Return |x| x^p / |x^p|: a sharper direction with the same norm over all D channels."""
    # The quotient does not depend on the length of x. Dividing by the largest entry first keeps
    # the powers of features that are 1e-6 everywhere (no unit active) from vanishing: 0 / 0.
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x_BxNxD), axis=-1, keepdims=True))
    powered = (x_BxNxD / peak) ** factor
    norm = jnp.linalg.norm(x_BxNxD, axis=-1, keepdims=True)
    return powered / jnp.linalg.norm(powered, axis=-1, keepdims=True) * norm


class FocusedAttention(LinearAttention):
    """Linear attention whose features are divided by a learned softplus scale and focused.

    A learned position table, one row per token and zero at first, is added to the keys before the
    kernel function, so that the parameters belong to one token grid.
    """

    SHARDING: ClassVar[tuple[Rule, ...]] = (*LinearAttention.SHARDING, ("position", ()))
    FIXED_GRID: ClassVar[bool] = True

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.scale = nnx.Param(jnp.zeros((1, 1, config.hidden_size)))
        self.position = nnx.Param(jnp.zeros((1, config.num_tokens, config.hidden_size)))

    def features(self, x_BxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        k = self.k(x_BxNxD)
        k = feature_map(k + self.position[...].astype(k.dtype), self.kernel_fn)
        q = feature_map(self.q(x_BxNxD), self.kernel_fn)
        scale = jax.nn.softplus(self.scale[...])
        # Powers and norms in float32: cubes leave the range of half precision.
        return focus(q.astype(jnp.float32) / scale), focus(k.astype(jnp.float32) / scale)
