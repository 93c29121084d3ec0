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
    config.data.data_dir = "runs/data"
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
