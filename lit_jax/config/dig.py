"""Which DiG a network is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.transformer import LabelledShape, Size
from lit_jax.config.typed import limit, require


@dataclass(frozen=True)
class DiGConfig(LabelledShape):
    """Architecture of a DiG (Zhu et al. 2024). Arguments carry the names of the official
    implementation, without the `if_` of its switches.

    Heads have D `expand_k` / `num_heads` channels of queries and keys and D `expand_v` /
    `num_heads` of values. `skip` is the U-shaped variant; with `skip_zero` its connections start
    closed.
    """

    family: str = "DiG"
    mixer: str = "gated"
    input_size: Size = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 18
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    class_dropout_prob: float = 0.1
    learn_sigma: bool = True
    expand_k: float = 0.5
    expand_v: float = 1.0
    skip: bool = False
    skip_zero: bool = False
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        self.check_shape()
        self.check_labels()
        limit(self, "positive", "expand_k", "expand_v")
        heads = self.num_heads
        for name, width in (("expand_k", self.key_dim), ("expand_v", self.value_dim)):
            require(
                width > 0 and width % heads == 0,
                f"hidden_size {self.hidden_size} x {name} {getattr(self, name)} is {width}, which"
                f" is not divisible by num_heads {heads}",
            )

    @property
    def key_dim(self) -> int:
        """Channels of queries and keys, all heads together."""
        return int(self.hidden_size * self.expand_k)

    @property
    def value_dim(self) -> int:
        """Channels of values, all heads together."""
        return int(self.hidden_size * self.expand_v)
