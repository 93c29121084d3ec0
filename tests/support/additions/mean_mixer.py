"""Mixer of the tests: every token adds the gated mean of all tokens.

B batch, N tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lit_jax.models.attention import Macs
from lit_jax.models.attention.mixer import Mixer
from lit_jax.models.layers import Dense
from lit_jax.sharding import Rule


class MeanMixer(Mixer):
    """o_i = sigmoid(gate(x_i)) mean_j v(x_j): [B, N, D] -> [B, N, D]."""

    SHARDING: ClassVar[tuple[Rule, ...]] = (("gate/kernel", (None, "fsdp", None)),)
    EXCHANGED: ClassVar[str | None] = "the mean over all tokens"

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        D, dtype = config.hidden_size, config.dtype
        self.gate = Dense(D, D, dtype=dtype, rngs=rngs)
        self.v = Dense(D, D, dtype=dtype, rngs=rngs)
        self.out = Dense(D, D, dtype=dtype, rngs=rngs)

    @classmethod
    def macs(cls, config: Any) -> Macs:
        N, D = config.num_tokens, config.hidden_size
        return {"projections": 3 * N * D * D, "attention": N * D, "convolution": 0}

    def heads(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        N = x_BxNxD.shape[1]
        mean_BxD = jnp.einsum("n,bnd->bd", jnp.full(N, 1 / N, x_BxNxD.dtype), self.v(x_BxNxD))
        return jax.nn.sigmoid(self.gate(x_BxNxD)) * mean_BxD[:, None]
