"""Torch keys of the family of the tests, and its architecture from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_jax.keymap.rows import Layout, Row, linear
from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.dit.detect import label_table
from lit_jax.models.transformer.detect import REQUIRED, read_backbone, why_num_heads
from lit_jax.models.transformer.positions import square_size, why_no_size
from support.additions.parallel.config import ParallelConfig

LAYOUTS = (
    Layout(
        name="parallel",
        config=ParallelConfig,
        holds=lambda config: config.mixer == "softmax",
        rows=(
            Row("stem.weight", ("x_embedder/kernel",), "patch"),
            Row("stem.bias", ("x_embedder/bias",), "as_is"),
            *linear("time.0", "t_embedder/fc1"),
            *linear("time.1", "t_embedder/fc2"),
            Row("classes.weight", ("y_embedder/embedding",), "as_is"),
            *linear("layers.{block}.qkv", "blocks/attn/q", "blocks/attn/k", "blocks/attn/v"),
            *linear("layers.{block}.proj", "blocks/attn/out"),
            *linear("layers.{block}.up", "blocks/mlp/fc1"),
            *linear("layers.{block}.down", "blocks/mlp/fc2"),
            *linear("layers.{block}.modulation", "blocks/adaln"),
            *linear("head.modulation", "final_layer/adaln"),
            *linear("head.linear", "final_layer/linear"),
        ),
        marks=("stem.weight", "layers.0.qkv.weight"),
        droppable={r"pos_embed": "recomputed"},
    ),
)


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that shapes decide."""
    fields = read_backbone(shapes, told) | label_table(shapes, told) | square_size(shapes, told)
    return fields | {"family": "Parallel"}


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raise ValueError: no library has this network."""
    raise ValueError("no library has this network")


DETECTOR = Detector(
    required=REQUIRED,
    read=read,
    asks={
        "num_heads": (why_num_heads, "num_heads=HEADS"),
        "input_size": (why_no_size, "input_size=HEIGHTxWIDTH"),
    },
    from_hub=from_hub,
)
