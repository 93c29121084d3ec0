"""The KL autoencoder of diffusers itself, B images of height H and width W."""

from __future__ import annotations

from typing import Any

import torch

from tools.torch_reference.layers import Architecture, Inputs, Outputs, State
from tools.torch_reference.library import filled, library

LATENT_SIZE = (6, 10)


def random_inputs(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return image [2, C, H, W] in [-1, 1] and latent [2, c, h, w] (not scaled), neither square."""
    generator = torch.Generator().manual_seed(seed)
    factor = 2 ** (len(architecture["block_out_channels"]) - 1)
    size = tuple(side * factor for side in LATENT_SIZE)
    image = torch.rand(2, architecture["in_channels"], *size, generator=generator)
    latent = torch.randn(2, architecture["latent_channels"], *LATENT_SIZE, generator=generator)
    return {"image": 2 * image - 1, "latent": latent}


def diffusers(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return moments [B, 2 c, h, w] of `image` and decoded [B, C, H, W] of `latent`.

    Old files call the attention query, key, value and proj_attn; diffusers renames them.
    """
    module = library("diffusers")
    levels = len(architecture["block_out_channels"])
    names = ("in_channels", "out_channels", "latent_channels", "layers_per_block")
    settings = {name: architecture[name] for name in (*names, "norm_num_groups")} | {
        "block_out_channels": tuple(architecture["block_out_channels"]),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }

    def rename(model: Any, state: State) -> State:
        return model._fix_state_dict_keys_on_load(dict(state))

    model = filled(lambda: module.AutoencoderKL(**settings), state, rename)
    moments = model.encode(inputs["image"]).latent_dist.parameters
    return {"moments": moments, "decoded": model.decode(inputs["latent"]).sample}
