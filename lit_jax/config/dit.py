"""Which DiT or LiT a network is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit, require, unknown_name

Size = int | tuple[int, int]

KERNEL_FNS = ("relu", "gelu")
"""Feature maps of linear attention."""


@dataclass(frozen=True)
class DiTConfig:
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
        if isinstance(self.input_size, list):
            object.__setattr__(self, "input_size", tuple(self.input_size))
        sizes = ("patch_size", "in_channels", "hidden_size", "depth", "num_heads", "scan_unroll")
        limit(self, "an integer of at least 1", *sizes)
        limit(self, "positive", "mlp_ratio")
        limit(self, "in [0, 1)", "class_dropout_prob")
        limit(self, "odd, or None", "kernel_size")
        if self.kernel_fn not in KERNEL_FNS:
            raise unknown_name("kernel_fn", self.kernel_fn, KERNEL_FNS)
        size, patch, D, heads = self.input_size, self.patch_size, self.hidden_size, self.num_heads
        pair = isinstance(size, int) or len(size) == 2
        require(pair, f"input_size is {size}; it must be a side or (height, width)")
        tiled = all(side > 0 and side % patch == 0 for side in self.image_size)
        require(tiled, f"input_size {size} is not a multiple of patch_size {patch}")
        require(D % heads == 0, f"hidden_size {D} is not divisible by num_heads {heads}")
        require(D % 4 == 0, f"hidden_size {D} is not divisible by 4, as the position table needs")
        classes = self.num_classes
        require(classes >= 0, f"num_classes is {classes}; use 0 for an unconditional model")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model input, in latent or image pixels."""
        if isinstance(self.input_size, int):
            return self.input_size, self.input_size
        return self.input_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def mlp_width(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def null_label(self) -> int | None:
        """Index of the null class of classifier-free guidance, None if the model has none."""
        return self.num_classes if self.num_classes and self.class_dropout_prob > 0 else None
