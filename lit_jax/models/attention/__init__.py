"""Token mixers. A mixer is a row of `MIXERS`: a module built from the configuration of a denoiser
and called as `mixer(x_BxNxD, grid=(H, W)) -> [B, N, D]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import nnx

from lit_jax.config import unknown_name
from lit_jax.models.attention.focused import FocusedAttention
from lit_jax.models.attention.linear import LinearAttention
from lit_jax.models.attention.sana import SanaAttention
from lit_jax.models.attention.softmax import SoftmaxAttention
from lit_jax.models.attention.window import WindowAttention
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import MixerConfig


class Mixer(Protocol):
    """Attention of a block: the outputs of the heads side by side, then the projection that mixes
    them. `mixer(x, grid)` computes both."""

    out: Callable[[jax.Array], jax.Array]

    def heads(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array: ...

    def __call__(self, x_BxNxD: jax.Array, grid: tuple[int, int]) -> jax.Array: ...


MIXERS: dict[str, Callable[..., Any]] = {
    "softmax": SoftmaxAttention,
    "window": WindowAttention,
    "linear": LinearAttention,
    "focused": FocusedAttention,
    "sana": SanaAttention,
}

FIXED_GRID = ("focused",)
"""Mixers with parameters per token, so that they work on the nominal token grid alone."""


def make_mixer(config: MixerConfig, rngs: nnx.Rngs) -> Mixer:
    """Return the mixer of `config.mixer`; an unknown name lists the known ones."""
    if config.mixer not in MIXERS:
        raise unknown_name("mixer", config.mixer, MIXERS)
    if isinstance(config, PixArtConfig) and config.mixer in FIXED_GRID:
        raise ValueError(
            f"mixer {config.mixer!r} holds parameters for every token of one grid, but PixArt takes"
            " images of any height and width; use mixer 'softmax' or 'linear'"
        )
    mixer: Mixer = MIXERS[config.mixer](config, rngs=rngs)
    return mixer
