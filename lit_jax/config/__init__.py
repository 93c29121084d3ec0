"""Typed configuration: frozen dataclasses and the one border where a ConfigDict becomes typed.

Floor 0: imports nothing of the package. Every default of the project lives in a field of this
room or in a file of `configs/`; nothing is read with a fallback value anywhere else.
"""

from lit_jax.config.autoencoder import AutoencoderConfig
from lit_jax.config.dig import DiGConfig
from lit_jax.config.dit import DiTConfig
from lit_jax.config.encode import EncodeConfig, SourceConfig, TextConfig
from lit_jax.config.experiment import (
    DataConfig,
    DistillConfig,
    EmaConfig,
    InheritConfig,
    MeshConfig,
    ModelSpec,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from lit_jax.config.inception import InceptionConfig
from lit_jax.config.networks import (
    COMPUTE_FIELDS,
    CONFIGS,
    LATER_FIELDS,
    DenoiserConfig,
    LabelledConfig,
    MixerConfig,
    NetworkConfig,
    architecture,
    config_class,
    network_fields,
)
from lit_jax.config.pixart import KV_SAMPLINGS, KVCompressConfig, PixArtConfig
from lit_jax.config.t5 import T5Config
from lit_jax.config.transformer import SOFTMAX_MIXERS
from lit_jax.config.typed import from_mapping, typed_fields, unknown_name

__all__ = [
    "COMPUTE_FIELDS",
    "CONFIGS",
    "KV_SAMPLINGS",
    "LATER_FIELDS",
    "SOFTMAX_MIXERS",
    "AutoencoderConfig",
    "DataConfig",
    "DenoiserConfig",
    "DiGConfig",
    "DiTConfig",
    "DistillConfig",
    "EmaConfig",
    "EncodeConfig",
    "InceptionConfig",
    "InheritConfig",
    "KVCompressConfig",
    "LabelledConfig",
    "MeshConfig",
    "MixerConfig",
    "ModelSpec",
    "NetworkConfig",
    "OptimizerConfig",
    "PixArtConfig",
    "SampleConfig",
    "SourceConfig",
    "T5Config",
    "TextConfig",
    "TrainConfig",
    "architecture",
    "config_class",
    "from_mapping",
    "network_fields",
    "typed_fields",
    "unknown_name",
]
