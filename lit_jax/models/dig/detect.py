"""The architecture of a DiG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.dig.config import mlp_width
from lit_jax.models.dit.detect import LABELS, label_table
from lit_jax.models.transformer.detect import learn_sigma
from lit_jax.models.transformer.positions import square_size, why_no_size

REQUIRED = {
    "x_embedder/kernel": 4,
    "final_layer/linear/kernel": 2,
    "blocks/mlp/down/kernel": 2,
    "blocks/attn/q/kernel": 2,
    "blocks/attn/v/kernel": 2,
    "blocks/attn/g_norm/scale": 1,
}


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields but the order of the tokens, which leaves no trace in a file.

    Without label table and without modulation of the last layer a network is unconditional.
    """
    hidden, channels, patch, _ = shapes.expect("x_embedder/kernel")
    keys, values = (shapes.expect(f"blocks/attn/{name}/kernel")[0] for name in ("q", "v"))
    depth = shapes.count("blocks/mlp/down/kernel")
    _check_mlp(shapes, hidden)
    found: dict[str, Any] = {
        "family": "DiG",
        "mixer": "gated",
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "depth": depth,
        "learn_sigma": learn_sigma(shapes, patch, channels),
        "num_heads": _heads(shapes, values),
        "expand_k": _expansion("expand_k", keys, hidden, told),
        "expand_v": _expansion("expand_v", values, hidden, told),
        "skip": shapes.of("skip/kernel", block=depth - 1) is not None,
        "dw_conv": "blocks/dwc/kernel" in shapes,
    }
    if (filters := shapes.of("blocks/dwc/kernel")) is not None:
        found["conv_kernel_size"] = shapes.ranked("blocks/dwc/kernel", filters, 4)[-1]
    if LABELS not in shapes and "final_layer/adaln/kernel" not in shapes:
        found["num_classes"] = 0
    else:
        found |= label_table(shapes, told)
    return found | square_size(shapes, told)


def _heads(shapes: Shapes, values: int) -> int:
    """Return the norm has one scale per channel of a head."""
    width = shapes.expect("blocks/attn/g_norm/scale")[0]
    if values % width:
        raise ValueError(
            f"{shapes.key('blocks/attn/g_norm/scale')!r} has {width} channels, which do not divide"
            f" the {values} channels of {shapes.key('blocks/attn/v/kernel')!r}"
        )
    return values // width


def _expansion(name: str, width: int, hidden: int, told: Mapping[str, Any]) -> float:
    """Return a ratio whose product with the hidden size truncates to `width`; the told one if it
    does."""
    if name in told and int(hidden * told[name]) == width:
        return float(told[name])
    ratio = width / hidden
    return ratio if int(hidden * ratio) == width else float(np.nextafter(ratio, np.inf))


def _check_mlp(shapes: Shapes, hidden: int) -> None:
    """Raise ValueError for an inner width that does not follow from the hidden size."""
    width, official = shapes.expect("blocks/mlp/down/kernel")[1], mlp_width(hidden)
    if width != official:
        raise ValueError(
            f"{shapes.key('blocks/mlp/down/kernel')!r} has {width} columns; the inner width of the"
            f" MLP of a DiG of hidden_size {hidden} is {official}"
        )


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Raise ValueError: no library has this network."""
    kind = config.get("_class_name") or config.get("architectures") or "another network"
    raise ValueError(
        f"the config.json beside the file describes {kind}, but the checkpoint of a DiG comes"
        " without one: move the file to a folder of its own"
    )


DETECTOR = Detector(
    required=REQUIRED,
    read=read,
    asks={"input_size": (why_no_size, "input_size=HEIGHTxWIDTH")},
    from_hub=from_hub,
)
