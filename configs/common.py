"""What experiment files share: every key with its default, and the digits setting."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from lit_jax.config import TrainConfig


def base() -> ConfigDict:
    """All keys of `TrainConfig` with their defaults. Locked: a misspelt key is an error."""
    return ConfigDict(dataclasses.asdict(TrainConfig()))


def choose(argument: str, known: tuple[str, ...]) -> str:
    """The argument after the colon of `--config FILE:ARGUMENT`, checked."""
    if argument not in known:
        raise ValueError(f"config argument {argument!r} is not one of {', '.join(known)}")
    return argument


def digits() -> ConfigDict:
    """The embedded 8 x 8 digits: data, and a backbone that trains on a laptop."""
    config = base()
    config.batch_size = 64
    config.data.name = "digits"
    config.data.data_dir = "runs/demo/data"
    config.model.overrides = ConfigDict(
        {
            "input_size": 8,
            "patch_size": 1,
            "in_channels": 1,
            "hidden_size": 64,
            "depth": 4,
            "num_heads": 4,
            "num_classes": 10,
        }
    )
    return config


def imagenet256(size: str) -> ConfigDict:
    """ImageNet at 256 x 256 as VAE latents of 32 x 32 x 4, and the optimiser DiT and LiT share:
    AdamW at a constant 1e-4 without weight decay, batch 256, EMA 0.9999. The large sizes split
    their state over all devices and keep only matrix products for the backward pass."""
    config = base()
    if size.startswith(("L", "XL")):
        config.mesh.data, config.mesh.fsdp = 1, -1
        config.model.remat = "dots"
    config.model.overrides = ConfigDict(
        {
            "input_size": 32,
            "in_channels": 4,
            "num_classes": 1000,
            "class_dropout_prob": 0.1,
            "qkv_bias": True,
        }
    )
    config.total_steps = 400_000
    config.batch_size = 256
    config.data.name = "imagenet256_latents"
    config.data.data_dir = "data"
    config.data.flip = True
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.ema.decay = 0.9999
    config.checkpoint_every = 10_000
    return config
