"""Typed configuration: frozen dataclasses, and the conversion of a ConfigDict to them.

Imports nothing else of the package. Every default lives in a field of these dataclasses, in a file
of `configs/`, or in the configuration of a family.
"""

from lit_jax.config.encode import EncodeConfig, SourceConfig, TextConfig
from lit_jax.config.experiment import (
    DataConfig,
    DistillConfig,
    EmaConfig,
    GridConfig,
    InheritConfig,
    MeshConfig,
    ModelSpec,
    OptimizerConfig,
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
    "GridConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "from_mapping",
    "typed_fields",
    "unknown_name",
]
