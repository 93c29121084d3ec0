"""Table of the token mixers. Free of jax: a mixer is imported on first use.

A mixer is a module built from the configuration of a denoiser and called as
`mixer(x_BxNxD, grid=(H, W)) -> [B, N, D]`. Its file holds everything about it: equation, module,
multiply-accumulates, placement of its own parameters, and the exchange between devices that share
an image.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_jax.config.typed import unknown_name

if TYPE_CHECKING:
    from flax import nnx

    from lit_jax.models.attention.mixer import Mixer

Macs = dict[str, int]
"""Component -> multiply-accumulates per image: "projections", "attention" (the core between the
projections) and "convolution" (filters over the token grid)."""


@dataclass(frozen=True)
class MixerSpec:
    """Row of the table. `softmax`: it has the projections and heads of softmax attention, so that a
    softmax teacher can hand down all of its weights."""

    module: str
    softmax: bool = False


MIXERS: dict[str, MixerSpec] = {
    "softmax": MixerSpec("lit_jax.models.attention.softmax:SoftmaxAttention", softmax=True),
    "window": MixerSpec("lit_jax.models.attention.window:WindowAttention", softmax=True),
    "linear": MixerSpec("lit_jax.models.attention.linear:LinearAttention"),
    "focused": MixerSpec("lit_jax.models.attention.focused:FocusedAttention"),
    "sana": MixerSpec("lit_jax.models.attention.sana:SanaAttention"),
}
"""Exchangeable mixers of DiT and PixArt."""

OWN_MIXERS: dict[str, MixerSpec] = {
    "gated": MixerSpec("lit_jax.models.attention.gated:GatedAttention"),
}
"""Mixers that belong to one family, which has no other (DiG)."""


def is_softmax(mixer: str) -> bool:
    """Return True for mixers with the projections and heads of softmax attention."""
    return mixer in MIXERS and MIXERS[mixer].softmax


def mixer_class(name: str) -> type[Mixer]:
    """Import the class of a mixer. Raises ValueError that lists the known names."""
    rows = MIXERS | OWN_MIXERS
    if name not in rows:
        raise unknown_name("mixer", name, rows)
    module, _, attribute = rows[name].module.partition(":")
    found: type[Mixer] = getattr(importlib.import_module(module), attribute)
    return found


def make_mixer(config: Any, rngs: nnx.Rngs, any_grid: bool = False) -> Mixer:
    """Build the mixer of `config.mixer`, a row of MIXERS. `any_grid`: for images of any size.

    Raises ValueError for an unknown name, and for a mixer that cannot take any grid.
    """
    if config.mixer not in MIXERS:
        raise unknown_name("mixer", config.mixer, MIXERS)
    cls: Any = mixer_class(config.mixer)
    if any_grid and cls.FIXED_GRID:
        raise ValueError(
            f"mixer {config.mixer!r} holds parameters for every token of one grid, but"
            f" {config.family} takes images of any height and width; use mixer 'softmax' or"
            " 'linear'"
        )
    mixer: Mixer = cls(config, rngs=rngs)
    return mixer
