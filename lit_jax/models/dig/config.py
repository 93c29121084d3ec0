"""Configuration of a DiG."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit, require, unknown_name
from lit_jax.models.transformer.shape import LabelledShape, Size

BID_MODES = ("layer", "seq")
"""Orders of the tokens: turned round after every layer, or forward in all."""

MLP_MULTIPLE = 256
"""The inner width of the MLP is rounded up to a multiple of this."""


def mlp_width(hidden_size: int) -> int:
    """Return inner width of the MLP: 8/3 D, rounded up to a multiple. Its three matrices are then
    about as large as two of ratio 4."""
    return -(-int(hidden_size * 8 / 3) // MLP_MULTIPLE) * MLP_MULTIPLE


@dataclass(frozen=True)
class DiGConfig(LabelledShape):
    """Architecture of a DiG (Zhu et al. 2024). Arguments carry the names of the official
    implementation, without the `if_` of its switches.

    Heads have D `expand_k` / `num_heads` channels of queries and keys and D `expand_v` /
    `num_heads` of values. Layers differ in the order in which they see the tokens: with `bid_mode`
    "layer" every other one sees them backwards, with `quad_dir` two of four by columns. `dw_conv`
    is the convolution of `conv_kernel_size` after a layer. `skip` is the U-shaped variant; with
    `skip_zero` its connections start closed. `mlp_ratio` is an argument of the official constructor
    that its MLP takes no notice of, and neither does this one.
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
    bid_mode: str = "layer"
    quad_dir: bool = True
    dw_conv: bool = True
    conv_kernel_size: int = 3
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
        limit(self, "odd, or None", "conv_kernel_size")
        if self.bid_mode not in BID_MODES:
            raise unknown_name("bid_mode", self.bid_mode, BID_MODES)
        heads = self.num_heads
        for name, width in (("expand_k", self.key_dim), ("expand_v", self.value_dim)):
            require(
                width > 0 and width % heads == 0,
                f"hidden_size {self.hidden_size} x {name} {getattr(self, name)} is {width}, which"
                f" is not divisible by num_heads {heads}",
            )
        require(
            not self.skip or self.depth % 2 == 0,
            f"depth is {self.depth}; skip joins the layers of two halves and needs an even number",
        )

    @property
    def key_dim(self) -> int:
        """Channels of queries and keys, all heads together."""
        return int(self.hidden_size * self.expand_k)

    @property
    def value_dim(self) -> int:
        """Channels of values, all heads together."""
        return int(self.hidden_size * self.expand_v)

    @property
    def mlp_width(self) -> int:
        """Inner width of the MLP."""
        return mlp_width(self.hidden_size)

    @property
    def skips(self) -> int:
        """Layers of the second half that read the output of one of the first."""
        return max(self.depth // 2 - 1, 0) if self.skip else 0
