"""Sharding rules of transformers on patches. Stacked blocks have the depth first, which no device
splits: the loop over depth then gathers one layer at a time."""

from __future__ import annotations

ATTENTION = (r"blocks/(attn|cross_attn)/(q|k|v|g|out)/kernel", (None, "fsdp", None))

TRANSFORMER = (
    ATTENTION,
    (r"blocks/(mlp/(fc\d|gate|down)|adaln)/kernel", (None, "fsdp", None)),
    (r"([ty]_embedder/fc\d|t_block|final_layer/(adaln|linear))/kernel", ("fsdp", None)),
    # A table by its columns: a look-up stays local, and 1001 classes divide by no mesh.
    (r"x_embedder/kernel|y_embedder/embedding", (None, "fsdp")),
)
