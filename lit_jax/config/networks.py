"""All kinds of networks: which dataclass describes which family."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_jax.config.autoencoder import AutoencoderConfig
from lit_jax.config.dig import DiGConfig
from lit_jax.config.dit import DiTConfig
from lit_jax.config.inception import InceptionConfig
from lit_jax.config.pixart import PixArtConfig
from lit_jax.config.t5 import T5Config
from lit_jax.config.typed import unknown_name

MixerConfig = DiTConfig | PixArtConfig
"""Denoisers whose token mixer is exchangeable: their `mixer` is a row of `attention.MIXERS`."""

LabelledConfig = DiTConfig | DiGConfig
"""Denoisers conditioned on class labels."""

DenoiserConfig = DiTConfig | DiGConfig | PixArtConfig
NetworkConfig = DenoiserConfig | AutoencoderConfig | T5Config | InceptionConfig

CONFIGS: dict[str, type[NetworkConfig]] = {
    "DiT": DiTConfig,
    "LiT": DiTConfig,
    "CLEAR": DiTConfig,
    "DiG": DiGConfig,
    "PixArt": PixArtConfig,
    "AutoencoderKL": AutoencoderConfig,
    "T5": T5Config,
    "Inception": InceptionConfig,
}
"""Field `family` of a stored architecture -> its dataclass."""

_NO_WINDOW = {"window_size": 8, "down_factor": None}

LATER_FIELDS: dict[str, dict[str, Any]] = {
    "T5": {"weights": "float"},
    "DiT": _NO_WINDOW,
    "LiT": _NO_WINDOW,
    "PixArt": _NO_WINDOW,
}
"""Family -> fields that it got after model folders had been written, and what those folders are."""

COMPUTE_FIELDS = ("dtype", "remat", "scan_unroll")
"""Fields that say how a network is computed, not which network it is."""


def config_class(family: Any) -> type[NetworkConfig]:
    """The dataclass of a family; ValueError that lists the known ones."""
    if family not in CONFIGS:
        raise unknown_name("family", family, CONFIGS)
    return CONFIGS[family]


def network_fields(cls: type[NetworkConfig]) -> tuple[str, ...]:
    """The fields of `cls` that define a network."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.name not in COMPUTE_FIELDS)


def architecture(config: NetworkConfig) -> dict[str, Any]:
    """The fields of `config` that define the network, ready for JSON (tuples as lists)."""
    fields = dataclasses.asdict(config)
    return {name: _plain(fields[name]) for name in network_fields(type(config))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
