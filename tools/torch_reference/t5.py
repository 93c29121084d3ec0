"""The T5 encoder of transformers itself, B texts of L tokens."""

from __future__ import annotations

from typing import Any

import torch

from tools.torch_reference.layers import Architecture, Inputs, Outputs, State
from tools.torch_reference.library import filled, library

LENGTH = 150
"""More tokens than `relative_attention_max_distance` of any published T5, which is 128."""

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
"""One table under two names; files hold either or both."""

FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)
"""Fields that transformers calls the same."""

DECODER = ("decoder.", "lm_head.")
"""Beginnings of keys of a whole T5 that the encoder has no use of."""


def random_inputs(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return token_ids [3, L] and mask [3, L]: all tokens, a short text, and a pattern with
    holes."""
    generator = torch.Generator().manual_seed(seed)
    length = max(LENGTH, architecture["relative_attention_max_distance"] + 22)
    token_ids = torch.randint(architecture["vocab_size"], (3, length), generator=generator)
    mask = torch.ones(3, length, dtype=torch.int64)
    mask[1, length // 4 :] = 0
    mask[2, ::3] = 0
    return {"token_ids": token_ids, "mask": mask}


def transformers(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return last_hidden_state [B, L, D] at all positions (without mask: all tokens are attended
    to)."""
    module = library("transformers")
    settings = {name: architecture[name] for name in FIELDS}
    config = module.T5Config(**settings, feed_forward_proj="gated-gelu", is_encoder_decoder=False)

    def rename(model: Any, state: State) -> State:
        table = next((state[key] for key in EMBEDDINGS if key in state), None)
        kept = {key: value for key, value in state.items() if not key.startswith(DECODER)}
        return kept if table is None else kept | dict.fromkeys(EMBEDDINGS, table)

    model = filled(lambda: module.T5EncoderModel(config), state, rename)
    out = model(input_ids=inputs["token_ids"], attention_mask=inputs.get("mask"))
    return {"last_hidden_state": out.last_hidden_state}
