"""Configuration of a T5 encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_jax.config.typed import limit, require, unknown_name

TOKENIZER_FILE = "tokenizer/spiece.model"
"""Path of the sentencepiece model in a model folder of a T5."""

WEIGHTS = ("float", "int8")
"""Storage of the matrices: as they are, or as int8 with scales (`models.int8`)."""


@dataclass(frozen=True)
class T5Config:
    """Architecture of a T5 v1.1 (or Flan-T5) encoder; names as in the config.json of transformers.

    The defaults are T5 v1.1 XXL, the text encoder of PixArt. `d_kv` is the width of one head;
    `num_heads * d_kv` may differ from `d_model`. `weights` is a row of WEIGHTS.
    """

    family: str = "T5"
    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    weights: str = "float"
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        distances = ("relative_attention_num_buckets", "relative_attention_max_distance")
        limit(self, "an integer of at least 1", *sizes, *distances)
        limit(self, "positive", "layer_norm_epsilon")
        if self.weights not in WEIGHTS:
            raise unknown_name("kind of weights", self.weights, WEIGHTS)
        buckets, farthest = (getattr(self, name) for name in distances)
        require(
            buckets >= 4,
            f"relative_attention_num_buckets is {buckets}; it must be at least 4: two directions,"
            " each with near and far distances",
        )
        require(
            farthest > buckets // 4,
            f"relative_attention_max_distance is {farthest}; it must be larger than the"
            f" {buckets // 4} distances that have a bucket each (a quarter of"
            f" relative_attention_num_buckets {buckets})",
        )

    @property
    def inner_width(self) -> int:
        """Width of queries, keys and values of all heads together."""
        return self.num_heads * self.d_kv


# Raffel et al. 2020 as released for version 1.1: d_model, d_ff, num_heads, num_layers.
_RELEASED = {
    "small": (512, 1024, 6, 8),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 16, 24),
    "XL": (2048, 5120, 32, 24),
    "XXL": (4096, 10240, 64, 24),
}

SIZES: dict[str, dict[str, Any]] = {
    f"T5-v1.1-{name}": {
        "family": "T5",
        "d_model": width,
        "d_ff": hidden,
        "num_heads": heads,
        "num_layers": layers,
    }
    for name, (width, hidden, heads, layers) in _RELEASED.items()
}
"""Named sizes -> fields of T5Config. Flan-T5 has the same, with other weights."""
