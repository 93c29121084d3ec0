"""Which DiT or LiT a network is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.transformer import Size, TransformerShape
from lit_jax.config.typed import require


@dataclass(frozen=True)
class DiTConfig(TransformerShape):
    """Architecture of a DiT or LiT. Arguments carry the names of the official implementation.

    `num_heads` counts softmax heads for `mixer="softmax"` and linear-attention heads otherwise.
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
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        self.check_shape()
        classes = self.num_classes
        require(classes >= 0, f"num_classes is {classes}; use 0 for an unconditional model")

    @property
    def null_label(self) -> int | None:
        """Index of the null class of classifier-free guidance, None if the model has none."""
        return self.num_classes if self.num_classes and self.class_dropout_prob > 0 else None
