"""The identity of a set of parameters: what a reported number was made from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from lit_jax.config import AutoencoderConfig
from lit_jax.models.zoo import Params
from lit_jax.sharding import path_string
from lit_jax.weights.folder import load_model_dir


def params_sha256(params: Params) -> str:
    """sha256 (hex) over paths, dtypes, shapes and bytes of all leaves, in the order of the paths.

    The same for a model folder and for the workdir it was written from.
    """
    digest = hashlib.sha256()
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


ENCODER = ("encoder", "quant_conv")
"""The parts of an autoencoder that make latents."""


@dataclass(frozen=True)
class VaeIdentity:
    """Which autoencoder latents belong to, and what they have to be divided by to be decoded.

    `id` is the name of its model folder, for people; `sha256` is that of all parameters
    (`params_sha256`), `encoder_sha256` that of those which make latents. `downsampling` is image
    pixels per latent pixel along an axis.
    """

    id: str
    sha256: str
    encoder_sha256: str
    scaling_factor: float
    downsampling: int
    latent_channels: int

    def require_same(self, other: VaeIdentity, ours: str, theirs: str) -> None:
        """Raises ValueError unless `other` has the same latents: encoder and scale. Decoders may
        differ, as those of sd-vae-ft-ema and sd-vae-ft-mse. `ours` and `theirs` say where the two
        come from, e.g. "the latents in data/x"."""
        mine, given = self.encoder_sha256, other.encoder_sha256
        if (mine, self.scaling_factor) != (given, other.scaling_factor):
            raise ValueError(
                f"{ours} belong to the VAE {self.id} (encoder sha256 {mine[:12]}, scale"
                f" {self.scaling_factor}), {theirs} is {other.id} (encoder sha256 {given[:12]},"
                f" scale {other.scaling_factor}); latents of one VAE are noise to another"
            )


def vae_identity(path: str | Path) -> VaeIdentity:
    """The identity of the autoencoder in a model folder. Reads its parameters once.

    Raises ValueError when the folder holds another kind of network.
    """
    config, params = load_model_dir(path)
    if not isinstance(config, AutoencoderConfig):
        raise ValueError(f"{path} holds a {config.family}; a VAE (AutoencoderKL) is needed")
    return VaeIdentity(
        id=Path(path).resolve().name,
        sha256=params_sha256(params),
        encoder_sha256=params_sha256({name: params[name] for name in ENCODER}),
        scaling_factor=config.scaling_factor,
        downsampling=config.downsampling,
        latent_channels=config.latent_channels,
    )
