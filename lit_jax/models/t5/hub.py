"""A T5 encoder as transformers describes it."""

from __future__ import annotations

from typing import Any

from lit_jax.keymap.hub_entries import TRANSFORMERS_FILE
from lit_jax.models.family import network_fields
from lit_jax.models.t5.config import T5Config


def hub_config(config: T5Config) -> tuple[dict[str, Any], str]:
    """Return (config.json, name of the weight file) of a T5EncoderModel."""
    names = [name for name in network_fields(T5Config) if name not in ("family", "weights")]
    return {name: getattr(config, name) for name in names} | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
    }, TRANSFORMERS_FILE
