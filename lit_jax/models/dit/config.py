"""Configuration of a DiT, LiT or CLEAR."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.models.attention.circle import check_pooling
from lit_jax.models.transformer.shape import LabelledShape, Size


@dataclass(frozen=True)
class DiTConfig(LabelledShape):
    """Architecture of a DiT, LiT or CLEAR. Arguments carry the names of the official
    implementation.

    `num_heads` counts softmax heads for the mixers "softmax" and "window" and linear-attention
    heads otherwise. `window_size` is the radius r of CLEAR's circles in tokens: a query attends to
    the keys at a distance below r. `down_factor` f adds the f x f pooled tokens of the whole image,
    None adds none.
    `num_classes=0` makes the model unconditional; `class_dropout_prob=0` removes the null row of
    the label table. `kernel_size=None` removes the depth-wise convolution of a linear mixer.
    """

    family: str = "DiT"
    mixer: str = "softmax"
    input_size: Size = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    class_dropout_prob: float = 0.1
    learn_sigma: bool = True
    qkv_bias: bool = True
    kernel_size: int | None = 5
    kernel_fn: str = "relu"
    window_size: int = 8
    down_factor: int | None = None
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        self.check_shape()
        self.check_labels()
        self.check_mixer()
        if self.mixer == "window":
            check_pooling(self.grid, self.down_factor)
