"""Configuration of the family of the tests."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.models.transformer.shape import LabelledShape, Size


@dataclass(frozen=True)
class ParallelConfig(LabelledShape):
    """Architecture of a Parallel."""

    family: str = "Parallel"
    mixer: str = "softmax"
    input_size: Size = 8
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 16
    depth: int = 2
    num_heads: int = 2
    mlp_ratio: float = 2.0
    num_classes: int = 10
    class_dropout_prob: float = 0.1
    learn_sigma: bool = True
    qkv_bias: bool = True
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        self.check_shape()
        self.check_labels()
