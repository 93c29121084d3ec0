"""Configuration of a PixArt or a text-to-image LiT."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit, require, unknown_name
from lit_jax.models.attention import is_softmax
from lit_jax.models.transformer.shape import Size, TransformerShape

KV_SAMPLINGS = ("conv", "ave", "uniform", "uniform_every")
"""Compression of key and value tokens: learned filters, nearest pixel of a smaller grid, every
s-th row and column, every s-th token."""

OFFICIAL_HEADS = {1152: 16}
"""Hidden size of the published models -> softmax heads."""


@dataclass(frozen=True)
class KVCompressConfig:
    """Key/value token compression of PixArt-Sigma: which layers, how, and by which factor per axis.

    Field names and values are those of the official configuration files. Layers count from 0.
    """

    sampling: str | None = "conv"
    scale_factor: int = 2
    kv_compress_layer: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.sampling is None:  # how official configuration files say that there is none
            object.__setattr__(self, "sampling", KV_SAMPLINGS[0])
            object.__setattr__(self, "kv_compress_layer", ())
        if self.sampling not in KV_SAMPLINGS:
            raise unknown_name("kv_compress_config.sampling", str(self.sampling), KV_SAMPLINGS)
        limit(self, "an integer of at least 1", "kv_compress_config.scale_factor")
        # Parameters of compressed layers are stacked in this order.
        object.__setattr__(self, "kv_compress_layer", tuple(sorted(set(self.kv_compress_layer))))


@dataclass(frozen=True)
class PixArtConfig(TransformerShape):
    """Architecture of a PixArt-alpha, PixArt-Sigma or text-to-image LiT.

    Arguments carry the names of the official implementation. `input_size` is the nominal size, a
    side or (height, width): the network takes any height and width, and positions are scaled to the
    nominal token grid, axis by axis. `model_max_length` is the number of tokens of the stored null
    caption, None when the model holds none (diffusers files do not). A `kv_compress_config` without
    layers, or of factor 1, compresses nothing and is None.

    `num_heads` counts softmax heads for the mixers "softmax" and "window" and linear-attention
    heads otherwise; `window_size` and `down_factor` are those of DiTConfig. The cross-attention is
    softmax in either case; `cross_num_heads` are its heads. None means as many as the softmax
    self-attention has; beside a linear mixer it means those of the published model of this width,
    or `num_heads` when there is none.
    """

    family: str = "PixArt"
    mixer: str = "softmax"
    input_size: Size = 64
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    cross_num_heads: int | None = None
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
    window_size: int = 8
    down_factor: int | None = None
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        self.check_shape()
        self.check_mixer()
        limit(self, "an integer of at least 1", "caption_channels")
        limit(self, "positive", "pe_interpolation")
        for name in ("model_max_length", "cross_num_heads"):
            if getattr(self, name) is not None:
                limit(self, "an integer of at least 1", name)
        D, heads = self.hidden_size, self.cross_heads
        require(D % heads == 0, f"hidden_size {D} is not divisible by cross_num_heads {heads}")
        require(
            D % 3 == 0 or not self.micro_condition,
            f"hidden_size {D} is not divisible by 3, as micro_condition needs (height, width and"
            " aspect ratio take a third each)",
        )
        self._check_softmax_options()

    def _check_softmax_options(self) -> None:
        """Refuse qk_norm and key/value compression without softmax attention."""
        compression = self.kv_compress_config
        if compression is not None:
            if not compression.kv_compress_layer or compression.scale_factor == 1:
                object.__setattr__(self, "kv_compress_config", None)
            for layer in compression.kv_compress_layer:
                require(
                    isinstance(layer, int) and 0 <= layer < self.depth,
                    f"kv_compress_config.kv_compress_layer has layer {layer!r}; the layers of a"
                    f" model of depth {self.depth} are 0..{self.depth - 1}",
                )
        plain = self.mixer == "softmax"
        for name, fits in (("qk_norm", is_softmax(self.mixer)), ("kv_compress_config", plain)):
            require(
                fits or not getattr(self, name),
                f"{name} belongs to softmax attention, but the mixer is {self.mixer!r}; leave"
                f" {name} out or set mixer='softmax'",
            )

    @property
    def cross_heads(self) -> int:
        """Heads of the cross-attention."""
        if self.cross_num_heads is not None:
            return self.cross_num_heads
        if is_softmax(self.mixer):
            return self.num_heads
        return OFFICIAL_HEADS.get(self.hidden_size, self.num_heads)

    @property
    def compressed_layers(self) -> tuple[int, ...]:
        """Layers whose key and value tokens are compressed, ascending."""
        compression = self.kv_compress_config
        return () if compression is None else compression.kv_compress_layer


CAPTION_TOKENS = 300
"""Length of a caption for a model that does not record it."""


def caption_tokens(config: PixArtConfig) -> int:
    """Return L, the tokens of captions of the full length."""
    return config.model_max_length or CAPTION_TOKENS
