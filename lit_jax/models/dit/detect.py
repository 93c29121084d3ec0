"""The architecture of a DiT, LiT or CLEAR on class labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_jax.keymap.hub_entries import read_entries, refuse_unlike
from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.transformer.detect import (
    ONLY,
    REQUIRED,
    HubBackbone,
    read_backbone,
    why_num_heads,
)
from lit_jax.models.transformer.positions import square_size, why_no_size

LABELS = "y_embedder/embedding"


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that shapes decide.

    A label table of K rows is read as K - 1 classes and the null row, unless `class_dropout_prob=0`
    or `num_classes=K` says otherwise.
    """
    found = read_backbone(shapes, told)
    found["family"] = _family(found["mixer"], told)
    found |= label_table(shapes, told)
    # A size that was told is compared with the table itself later.
    return found | square_size(shapes, told)


def _family(mixer: str, told: Mapping[str, Any]) -> str:
    """Return a DiT with windows may go by its own name."""
    if mixer == "window":
        return "DiT" if told.get("family") == "DiT" else "CLEAR"
    return "DiT" if mixer == "softmax" else "LiT"


def label_table(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return classes and null row. The table alone cannot tell K classes from K - 1 and a null row,
    and a checkpoint without it is unconditional only if that was said: the key may have been lost.
    """
    table = shapes.of(LABELS)
    if table is None and told.get("num_classes") == 0:
        return {"num_classes": 0}
    if table is None:
        raise ValueError(
            f"key {shapes.key(LABELS)!r} is missing; for an unconditional model, which has no label"
            " table, pass --set num_classes=0"
        )
    rows = shapes.ranked(LABELS, table, 2)[0]
    if "class_dropout_prob" in told:
        null_row = bool(told["class_dropout_prob"])
    else:
        null_row = rows > 1 and ("num_classes" not in told or told["num_classes"] != rows)
    if null_row:
        return {"num_classes": rows - 1}
    return {"num_classes": rows, "class_dropout_prob": 0.0}


@dataclass(frozen=True, kw_only=True)
class HubEntries(HubBackbone):
    """Entries of a diffusers config.json for a DiT."""

    num_embeds_ada_norm: int


CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")

# What other entries have to be for this network, when they are there.
_ONLY: dict[str, tuple[Any, ...]] = ONLY | {
    "_class_name": CLASSES,
    "norm_type": ("ada_norm_zero",),
    # 1e-5 is the default of the class, and written into files whose model was trained with 1e-6.
    "norm_eps": (1e-6, 1e-5),
}


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a diffusers DiTTransformer2DModel, or of an early file's Transformer2DModel.

    Raises ValueError for one that no DiT here can be.
    """
    refuse_unlike(config, _ONLY, "DiT")
    said = read_entries(config, HubEntries, "DiT")
    return said.fields("DiT") | {"num_classes": said.num_embeds_ada_norm}


DETECTOR = Detector(
    required=REQUIRED,
    read=read,
    asks={
        "num_heads": (why_num_heads, "num_heads=HEADS"),
        "input_size": (why_no_size, "input_size=HEIGHTxWIDTH"),
    },
    from_hub=from_hub,
)
