"""Token mixers. A mixer is a row of `MIXERS`: a module built from a DiTConfig and called as
`mixer(x_BxNxD, grid=(H, W)) -> [B, N, D]`."""

from __future__ import annotations

from typing import Protocol

import jax
from flax import nnx

from lit_jax.config import DiTConfig, unknown_name
from lit_jax.models.attention.focused import FocusedAttention
from lit_jax.models.attention.linear import LinearAttention
from lit_jax.models.attention.softmax import SoftmaxAttention


class Mixer(Protocol):
    """What a block asks of its attention."""

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array: ...


MIXERS = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "focused": FocusedAttention,
}


def make_mixer(config: DiTConfig, rngs: nnx.Rngs) -> Mixer:
    """The mixer of `config.mixer`; an unknown name lists the known ones."""
    if config.mixer not in MIXERS:
        raise unknown_name("mixer", config.mixer, MIXERS)
    return MIXERS[config.mixer](config, rngs=rngs)
