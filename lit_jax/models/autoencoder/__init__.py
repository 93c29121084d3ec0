"""AutoencoderKL, the VAE of latent diffusion models."""

from __future__ import annotations

from lit_jax.models.autoencoder.config import SIZES, AutoencoderConfig
from lit_jax.models.autoencoder.detect import DETECTOR
from lit_jax.models.autoencoder.hub import hub_config
from lit_jax.models.autoencoder.torch_keys import LAYOUTS
from lit_jax.models.family import Family

_VAE = {"family": "AutoencoderKL"}

FAMILY = Family(
    name="AutoencoderKL",
    config=AutoencoderConfig,
    module="lit_jax.models.autoencoder.model:AutoencoderKL",
    members={"AutoencoderKL": _VAE},
    layouts=LAYOUTS,
    detect=DETECTOR,
    # Small, and run on a part of the batch per device.
    sharding=((r"((encoder|decoder)/.*|quant_conv|post_quant_conv)/kernel", ()),),
    hub=hub_config,
    sizes={name: _VAE | row for name, row in SIZES.items()},
)
