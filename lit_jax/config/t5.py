"""Which T5 encoder a network is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit


@dataclass(frozen=True)
class T5Config:
    """Architecture of a T5 v1.1 (or Flan-T5) encoder; names as in the config.json of transformers.

    The defaults are T5 v1.1 XXL, the text encoder of PixArt.
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
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        limit(self, "an integer of at least 1", *sizes)
        limit(self, "positive", "layer_norm_epsilon")
