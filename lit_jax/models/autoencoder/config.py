"""Configuration of an AutoencoderKL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class AutoencoderConfig:
    """Architecture of the KL autoencoder of Stable Diffusion; names as in diffusers' config.json.

    `scaling_factor` belongs to the weights (0.18215 for SD 1.x, 0.13025 for SDXL): diffusion sees
    latents multiplied by it.
    """

    family: str = "AutoencoderKL"
    scaling_factor: float = 0.18215
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.block_out_channels, list):
            object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        counts = ("in_channels", "out_channels", "latent_channels", "layers_per_block")
        limit(self, "an integer of at least 1", *counts, "norm_num_groups")
        limit(self, "positive", "scaling_factor")
        require(bool(self.block_out_channels), "block_out_channels is empty; give one per level")
        for width in self.block_out_channels:
            require(
                width % self.norm_num_groups == 0,
                f"block_out_channels {self.block_out_channels}: {width} is not divisible by"
                f" norm_num_groups {self.norm_num_groups}",
            )

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel, along one axis."""
        return int(2 ** (len(self.block_out_channels) - 1))


_RELEASED: dict[str, Any] = {
    "family": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}

# One architecture, two sets of weights: the scales are those published with them (Stable Diffusion
# 1.x and its fine-tuned decoders, also DiT and PixArt-alpha; SDXL, also PixArt-Sigma).
SIZES: dict[str, dict[str, Any]] = {
    "SD-VAE": _RELEASED | {"scaling_factor": 0.18215},
    "SDXL-VAE": _RELEASED | {"scaling_factor": 0.13025},
}
"""Named autoencoders -> fields of AutoencoderConfig."""

ENCODER = ("encoder", "quant_conv")
"""The parts of the network that make latents."""
