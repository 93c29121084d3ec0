"""Which PixArt, or text-to-image LiT, a network is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.dit import Size
from lit_jax.config.typed import limit, require

KV_SAMPLINGS = ("conv", "ave", "uniform", "uniform_every")


@dataclass(frozen=True)
class KVCompressConfig:
    """Key/value token compression of PixArt-Sigma: which layers, how, and by which factor per axis.

    Field names and values are those of the official configuration files.
    """

    sampling: str = "conv"
    scale_factor: int = 2
    kv_compress_layer: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.kv_compress_layer, list):
            object.__setattr__(self, "kv_compress_layer", tuple(self.kv_compress_layer))


@dataclass(frozen=True)
class PixArtConfig:
    """Architecture of a PixArt-alpha, PixArt-Sigma or text-to-image LiT.

    Arguments carry the names of the official implementation. `input_size` is the nominal size: the
    network takes any height and width, and positions are scaled to the nominal token grid.
    `model_max_length` is the number of tokens of the stored null caption, None when the model holds
    none (diffusers files do not).
    """

    family: str = "PixArt"
    mixer: str = "softmax"
    input_size: Size = 64
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    model_max_length: int | None = 300
    class_dropout_prob: float = 0.1
    pe_interpolation: float = 1.0
    micro_condition: bool = False
    qk_norm: bool = False
    kv_compress_config: KVCompressConfig | None = None
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
        limit(self, "an integer of at least 1", *sizes, "caption_channels")
        limit(self, "positive", "mlp_ratio", "pe_interpolation")
        limit(self, "in [0, 1)", "class_dropout_prob")
        limit(self, "odd, or None", "kernel_size")
        size, patch, D, heads = self.input_size, self.patch_size, self.hidden_size, self.num_heads
        tiled = all(side > 0 and side % patch == 0 for side in self.image_size)
        require(tiled, f"input_size {size} is not a multiple of patch_size {patch}")
        require(D % heads == 0, f"hidden_size {D} is not divisible by num_heads {heads}")
        require(D % 4 == 0, f"hidden_size {D} is not divisible by 4, as the position table needs")

    @property
    def image_size(self) -> tuple[int, int]:
        """Nominal height and width of the model input, in latent pixels."""
        if isinstance(self.input_size, int):
            return self.input_size, self.input_size
        return self.input_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the nominal token grid."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def mlp_width(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)
