"""Base class of the token mixers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from lit_jax.models.attention import Macs
from lit_jax.sharding import Rule


class Mixer(nnx.Module):
    """Attention of a block: the outputs of the heads side by side (`heads`), then the projection
    that mixes them (`out`). [B, N, D] on a token grid -> [B, N, D].

    SHARDING    rules of the parameters besides q, k, v, g and out, by their path in the mixer
    EXCHANGED   data that devices which share the rows of an image send each other in every layer;
                None if they cannot share one
    FIXED_GRID  True if it holds parameters per token, for one token grid only
    """

    SHARDING: ClassVar[tuple[Rule, ...]] = ()
    EXCHANGED: ClassVar[str | None] = None
    FIXED_GRID: ClassVar[bool] = False

    out: Callable[[jax.Array], jax.Array]

    def heads(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Return the outputs of the heads side by side, before the output projection."""
        raise NotImplementedError(f"{type(self).__name__} defines no heads")

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array:
        return self.out(self.heads(x_BxNxD, grid))

    @classmethod
    def macs(cls, config: Any) -> Macs:
        """Return the MACs of one layer, as its algorithm multiplies."""
        raise NotImplementedError(f"{cls.__name__} defines no macs")

    @classmethod
    def printed_macs(cls, config: Any) -> int:
        """Return the MACs of one layer as the LiT paper prints them."""
        return sum(cls.macs(config).values())

    @classmethod
    def row_multiple(cls, config: Any) -> int:
        """Return the number of rows of tokens of which each device needs a multiple."""
        return 1
