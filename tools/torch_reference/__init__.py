"""The torch originals that converted weights are checked against: one per layout of a checkpoint.

Nothing here imports lit_jax, so that a mistake cannot be on both sides. DiT, LiT, DiG, PixArt and
Inception in their official layouts are plain torch functions of the state dict; for layouts of
diffusers and transformers it is the class of that library (`pip install 'lit_jax[verify]'`).
Images are channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from tools.torch_reference import autoencoder, dig, dit, inception, pixart, t5
from tools.torch_reference.layers import Architecture, Inputs, Outputs, State

__all__ = ["LAYOUTS", "RANDOM_INPUTS", "diffusers_deviation", "outputs", "random_inputs"]

LAYOUTS: dict[str, Callable[[State, Architecture, Inputs], Outputs]] = {
    "DiT/dit": dit.official,
    "DiT/lit": dit.official,
    "DiT/diffusers": dit.diffusers,
    "DiG/dig": dig.official,
    "PixArt/pixart": pixart.official,
    "PixArt/lit": pixart.official,
    "PixArt/diffusers": pixart.diffusers,
    "AutoencoderKL/diffusers": autoencoder.diffusers,
    "AutoencoderKL/diffusers-old": autoencoder.diffusers,
    "T5/transformers": t5.transformers,
    "Inception/pytorch-fid": inception.official,
}
"""Family and layout of a checkpoint -> the original network."""

RANDOM_INPUTS: dict[str, Callable[[Architecture, int], dict[str, torch.Tensor]]] = {
    "DiT": dit.random_inputs,
    "LiT": dit.random_inputs,
    "CLEAR": dit.random_inputs,
    "DiG": dit.random_inputs,
    "PixArt": pixart.random_inputs,
    "AutoencoderKL": autoencoder.random_inputs,
    "T5": t5.random_inputs,
    "Inception": inception.random_inputs,
}
"""Family -> inputs with every kind of condition, mask and size that the network knows."""


def random_inputs(
    family: str, architecture: Architecture, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return inputs of the original network of a family, the same for the same seed.

    Names and shapes are those of the family's own `random_inputs`. Raises ValueError for an unknown
    family.
    """
    if family not in RANDOM_INPUTS:
        raise _unknown("family", family, RANDOM_INPUTS)
    return RANDOM_INPUTS[family](architecture, seed)


def outputs(state: State, layout: str, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return what the original network computes from `inputs` with the weights of `state`.

    state         float32 tensors under the checkpoint's own keys
    layout        a row of LAYOUTS
    architecture  the fields that define the network, as a model folder stores them
    ->            DiT, DiG, PixArt: noise [B, C, H, W], with learn_sigma variance of the same shape;
                  AutoencoderKL: moments [B, 2 c, h, w], decoded [B, C, H, W];
                  T5: last_hidden_state [B, L, D];
                  Inception: pool3 [B, 2048], logits [B, 1008], spatial [B, 7, 17, 17]

    Raises ValueError for an unknown layout, a library that is missing, and weights or an
    architecture that the class of a library does not take.
    """
    if layout not in LAYOUTS:
        raise _unknown("layout", layout, LAYOUTS)
    with torch.inference_mode():
        return LAYOUTS[layout](state, architecture, inputs)


def diffusers_deviation(state: State, architecture: Architecture, seed: int = 0) -> float:
    """Return how far diffusers' DiT is from the official one with the same weights: max
    |difference| over max |official output|, for random inputs.

    `state` is in diffusers' layout. diffusers builds its timestep frequencies and one norm with
    other constants than the official network (see `dit.diffusers`), so this is not small.
    """
    inputs = random_inputs("DiT", architecture, seed)
    with torch.inference_mode():
        return dit.deviation(state, architecture, inputs)


def _unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"no torch original for {kind} {name!r} (known: {', '.join(sorted(known))})")
