"""Shape of a diffusion transformer: the part that all configurations share."""

from __future__ import annotations

from lit_jax.config.typed import limit, require, unknown_name

Size = int | tuple[int, int]

KERNEL_FNS = ("relu", "gelu")
"""Feature maps of linear attention."""


class TransformerShape:
    """Checks and derived sizes of a transformer on patches. No fields of its own: the dataclasses
    below it declare them, each in the order and with the defaults of its official constructor."""

    mixer: str
    input_size: Size
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float
    class_dropout_prob: float
    learn_sigma: bool

    def check_shape(self) -> None:
        """Raise ValueError, with value, limit and remedy, for sizes that do not fit together."""
        if isinstance(self.input_size, list):
            object.__setattr__(self, "input_size", tuple(self.input_size))
        sizes = ("patch_size", "in_channels", "hidden_size", "depth", "num_heads", "scan_unroll")
        limit(self, "an integer of at least 1", *sizes)
        limit(self, "positive", "mlp_ratio")
        limit(self, "in [0, 1)", "class_dropout_prob")
        size, patch, D, heads = self.input_size, self.patch_size, self.hidden_size, self.num_heads
        pair = isinstance(size, int) or len(size) == 2
        require(pair, f"input_size is {size}; it must be a side or (height, width)")
        tiled = all(side > 0 and side % patch == 0 for side in self.image_size)
        require(tiled, f"input_size {size} is not a multiple of patch_size {patch}")
        require(D % heads == 0, f"hidden_size {D} is not divisible by num_heads {heads}")
        require(D % 4 == 0, f"hidden_size {D} is not divisible by 4, as the position table needs")

    def check_mixer(self) -> None:
        """Raise ValueError for fields of the mixers: kernel_size and kernel_fn belong to the linear
        ones, window_size and down_factor to "window"."""
        limit(self, "odd, or None", "kernel_size")
        limit(self, "an integer of at least 1", "window_size")
        limit(self, "an integer of at least 2, or None", "down_factor")
        kernel_fn = getattr(self, "kernel_fn")  # noqa: B009
        if kernel_fn not in KERNEL_FNS:
            raise unknown_name("kernel_fn", kernel_fn, KERNEL_FNS)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model input, in latent or image pixels; nominal ones for a
        network that takes any."""
        if isinstance(self.input_size, int):
            return self.input_size, self.input_size
        return self.input_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid of `image_size`."""
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


class LabelledShape(TransformerShape):
    """The same for transformers conditioned on class labels."""

    num_classes: int

    def check_labels(self) -> None:
        """Raise ValueError for a negative number of classes."""
        classes = self.num_classes
        require(classes >= 0, f"num_classes is {classes}; use 0 for an unconditional model")

    @property
    def null_label(self) -> int | None:
        """Index of the null class of classifier-free guidance, None if the model has none."""
        return self.num_classes if self.num_classes and self.class_dropout_prob > 0 else None
