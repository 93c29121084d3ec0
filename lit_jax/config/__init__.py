"""Typed configuration: frozen dataclasses and the one border where a ConfigDict becomes typed.

Floor 0: imports nothing of the package. Every default of the project lives in a field of this
room or in a file of `configs/`; nothing is read with a fallback value anywhere else.
"""

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
from lit_jax.config.typed import from_mapping, typed_fields, unknown_name

__all__ = [
    "DataConfig",
    "DistillConfig",
    "EmaConfig",
    "EncodeConfig",
    "InheritConfig",
    "MeshConfig",
    "ModelSpec",
    "OptimizerConfig",
    "SampleConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "from_mapping",
    "typed_fields",
    "unknown_name",
]
