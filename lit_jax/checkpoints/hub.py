"""The config.json that makes an exported folder loadable by diffusers and transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_jax.checkpoints.pairing import unwritten
from lit_jax.keymap.rows import Layout
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import network_fields
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import NetworkConfig
from lit_jax.models.t5.config import T5Config

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_FILE = "model.safetensors"

# The version whose classes and field names these are.
DIFFUSERS_VERSION = "0.42.1"


def hub_config(config: NetworkConfig) -> tuple[dict[str, Any], str]:
    """Return (config.json, name of the weight file) of a network.

    Raises ValueError for a network that neither library has.
    """
    if isinstance(config, DiTConfig):
        return _dit(config), DIFFUSERS_FILE
    if isinstance(config, PixArtConfig):
        return _pixart(config), DIFFUSERS_FILE
    if isinstance(config, AutoencoderConfig):
        return _autoencoder(config), DIFFUSERS_FILE
    if isinstance(config, T5Config):
        return _t5(config), TRANSFORMERS_FILE
    raise ValueError(f"neither diffusers nor transformers has a {config.family} network")


def as_written(config: NetworkConfig, layout: Layout) -> NetworkConfig:
    """Return the configuration of what a file of `layout` holds of a network."""
    if "y_embedder/null_caption" in unwritten(config, layout):
        assert isinstance(config, PixArtConfig)
        return dataclasses.replace(config, model_max_length=None)
    return config


def _transformer(config: DiTConfig | PixArtConfig) -> dict[str, Any]:
    """Return fields that both diffusion transformers of diffusers have."""
    return {
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.image_size[0],
        "patch_size": config.patch_size,
        "attention_bias": config.qkv_bias,
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
        # Its default for DiT is 1e-5, which is not what the official model computes.
        "norm_eps": 1e-6,
    }


def _dit(config: DiTConfig) -> dict[str, Any]:
    return _transformer(config) | {
        "_class_name": "DiTTransformer2DModel",
        "num_embeds_ada_norm": config.num_classes,
        "norm_type": "ada_norm_zero",
    }


def _pixart(config: PixArtConfig) -> dict[str, Any]:
    return _transformer(config) | {
        "_class_name": "PixArtTransformer2DModel",
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "caption_channels": config.caption_channels,
        "cross_attention_dim": config.hidden_size,
        "interpolation_scale": config.pe_interpolation,
        "use_additional_conditions": config.micro_condition,
    }


def _autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "scaling_factor": config.scaling_factor,
    }


def _t5(config: T5Config) -> dict[str, Any]:
    names = [name for name in network_fields(T5Config) if name not in ("family", "weights")]
    return {name: getattr(config, name) for name in names} | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
    }
