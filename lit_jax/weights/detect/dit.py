"""The architecture of a DiT or LiT on class labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_jax.weights.detect.hub import outputs_variance, read_entries, refuse_unlike
from lit_jax.weights.detect.shapes import Detector, Shapes, mlp_ratio

LABELS = "y_embedder/embedding"


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that shapes decide.

    A label table of K rows is read as K - 1 classes and the null row, unless `class_dropout_prob=0`
    or `num_classes=K` says otherwise.
    """
    hidden, channels, patch, _ = shapes.expect("x_embedder/kernel")
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "depth": shapes.count("blocks/mlp/fc1/kernel"),
        "learn_sigma": learn_sigma(shapes, patch, channels),
        "mlp_ratio": mlp_ratio(shapes.expect("blocks/mlp/fc1/kernel")[0], hidden, told),
    }
    found |= read_mixer(shapes, hidden)
    found["family"] = "DiT" if found["mixer"] == "softmax" else "LiT"
    found |= _label_table(shapes, told)
    return found | _input_size(shapes, patch, told)


def learn_sigma(shapes: Shapes, patch: int, channels: int) -> bool:
    """Whether the last layer has variance channels; ValueError for any other count of rows."""
    outputs = shapes.expect("final_layer/linear/kernel")[0]
    single = patch * patch * channels
    if outputs not in (single, 2 * single):
        key = shapes.key("final_layer/linear/kernel")
        raise ValueError(
            f"{key} has {outputs} rows; patch size {patch} and {channels}"
            f" channels need {single}, or twice that with learn_sigma"
        )
    return outputs == 2 * single


def read_mixer(shapes: Shapes, hidden: int) -> dict[str, Any]:
    """Softmax attention, or the parts of Algorithm 1 that are there."""
    bias = "blocks/attn/k/bias" in shapes
    if shapes.layout.name != "lit":
        return {"mixer": "softmax", "qkv_bias": bias}
    found: dict[str, Any] = {
        "mixer": "focused" if "blocks/attn/scale" in shapes else "linear",
        "qkv_bias": bias,
        "kernel_size": None,
    }
    if (dwc := shapes.of("blocks/attn/dwc/kernel")) is not None:
        filters, _, _, size = shapes.ranked("blocks/attn/dwc/kernel", dwc, 4)
        # One filter per channel of a head, shared by all heads.
        found |= {"kernel_size": size, "num_heads": hidden // filters}
    return found


def _label_table(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and null row. The table alone cannot tell K classes from K - 1 and a null row, and a
    checkpoint without it is unconditional only if that was said: the key may have been lost."""
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


def _input_size(shapes: Shapes, patch: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Input size of a square token grid; a stated size is checked with the table itself later."""
    table = shapes.keys.get("pos_embed")
    if table is None or "input_size" in told:
        return {}
    tokens = shapes.ranked("pos_embed", table, 3)[1]
    side = math.isqrt(tokens)
    return {"input_size": side * patch} if side * side == tokens else {}


@dataclass(frozen=True)
class HubEntries:
    """What a diffusers config.json says of a DiT's architecture; without default: needed."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    in_channels: int
    patch_size: int
    sample_size: int
    num_embeds_ada_norm: int
    out_channels: int | None = None


CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")

# What other entries have to be for this network, when they are there.
_ONLY: dict[str, tuple[Any, ...]] = {
    "_class_name": CLASSES,
    "norm_type": ("ada_norm_zero",),
    "activation_fn": ("gelu-approximate",),
    "norm_elementwise_affine": (False,),
    "attention_bias": (True,),
    # 1e-5 is the default of the class, and written into files whose model was trained with 1e-6.
    "norm_eps": (1e-6, 1e-5),
}


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a diffusers DiTTransformer2DModel, or of an early file's Transformer2DModel.

    Raises ValueError for one that no DiT here can be.
    """
    refuse_unlike(config, _ONLY, "DiT")
    said = read_entries(config, HubEntries, "DiT")
    return {
        "hidden_size": said.num_attention_heads * said.attention_head_dim,
        "depth": said.num_layers,
        "num_heads": said.num_attention_heads,
        "in_channels": said.in_channels,
        "learn_sigma": outputs_variance(said.in_channels, said.out_channels, "DiT"),
        "patch_size": said.patch_size,
        "input_size": said.sample_size,
        "num_classes": said.num_embeds_ada_norm,
    }


def _why_input_size(shapes: Shapes) -> str:
    table = shapes.keys.get("pos_embed")
    return "there is no pos_embed" if table is None else f"{table[1]} tokens are not a square grid"


def _why_num_heads(shapes: Shapes) -> str:
    if shapes.layout.name == "lit":
        return "no depth-wise convolution tells the head width"
    hidden = shapes.expect("x_embedder/kernel")[0]
    depth = shapes.count("blocks/mlp/fc1/kernel")
    return f"hidden_size {hidden}, depth {depth}, which is no named size"


DETECTOR = Detector(
    required={
        "x_embedder/kernel": 4,
        "final_layer/linear/kernel": 2,
        "blocks/mlp/fc1/kernel": 2,
    },
    read=read,
    asks={
        "num_heads": (_why_num_heads, "num_heads=HEADS"),
        "input_size": (_why_input_size, "input_size=HEIGHTxWIDTH"),
    },
    from_hub=from_hub,
)
