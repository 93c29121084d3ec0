"""The architecture of a T5 encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lit_jax.config import typed_fields
from lit_jax.keymap.hub_entries import refuse_unlike
from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.family import network_fields
from lit_jax.models.t5.config import T5Config

TOKENS, BUCKETS = "shared/embedding", "relative_bias/embedding"

# mT5 has the encoder of T5 v1.1 and another vocabulary.
MODEL_TYPES = ("t5", "mt5")

# GELU in its tanh form, under the names that transformers has for it.
GATED_GELU = ("gated-gelu", "gated-gelu_new")
TANH_GELU = "gelu_new"

# What other entries have to be for this network, when they are there.
_ONLY: dict[str, tuple[Any, ...]] = {
    "dense_act_fn": (TANH_GELU,),
    "is_gated_act": (True,),
    "is_decoder": (False,),
}

_NOT_GATED = re.compile(r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wi\.weight")
_LATER_BIAS = re.compile(
    r"encoder\.block\.[1-9]\d*\.layer\.0\.SelfAttention\.relative_attention_bias\.weight"
)


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that shapes decide.

    `relative_attention_max_distance` and `layer_norm_epsilon` leave no trace in shapes. They are
    what the user or config.json says, else the defaults of T5Config, which all released T5 have.
    """
    _refuse_other_networks(shapes)
    inner, width = shapes.expect("blocks/attn/q/kernel")
    buckets, heads = shapes.expect(BUCKETS)
    if inner % heads:
        raise ValueError(
            f"{shapes.key('blocks/attn/q/kernel')!r} has {inner} rows, which {heads} heads, the"
            f" columns of {shapes.key(BUCKETS)!r}, do not divide"
        )
    wide = "blocks/mlp/wi_0/kernel"
    return {
        "family": "T5",
        "vocab_size": _vocabulary(shapes),
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": shapes.ranked(wide, shapes.expect(wide), 2)[0],
        "num_layers": shapes.count("blocks/attn/q/kernel"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "weights": "float",
    }


def _refuse_other_networks(shapes: Shapes) -> None:
    """Raise ValueError for the relatives of T5 v1.1 that share most of its keys."""
    for key in shapes.keys:
        if _NOT_GATED.fullmatch(key):
            raise ValueError(
                f"the checkpoint is a T5 v1.0: {key!r} belongs to a feed-forward layer with ReLU"
                " and without gate. Supported is T5 v1.1 (also Flan-T5, mT5), whose gated GELU has"
                " wi_0 and wi_1; take a v1.1 checkpoint"
            )
        if _LATER_BIAS.fullmatch(key):
            raise ValueError(
                f"the checkpoint is a UMT5: {key!r} is a position bias of its own in a later"
                " block. Supported is T5 v1.1 (also Flan-T5, mT5), whose blocks share the bias of"
                " the first; take a v1.1 checkpoint"
            )


def _vocabulary(shapes: Shapes) -> int:
    """Return rows of the token table, which may be there under any of its names."""
    (row,) = (row for row in shapes.layout.rows if TOKENS in row.targets)
    for key in (row.source, *row.copies):
        if key in shapes.keys:
            return shapes.ranked(key, shapes.keys[key], 2)[0]
    raise ValueError(f"key {row.source!r} is missing")


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a transformers T5Config; ValueError for a network that no encoder here can
    be."""
    kind = config.get("model_type", "t5")
    if kind not in MODEL_TYPES:
        why = ", whose blocks have a position bias each" if kind == "umt5" else ""
        raise ValueError(
            f"config.json: model_type is {kind!r}{why}; a T5 encoder needs"
            f" {' or '.join(map(repr, MODEL_TYPES))}"
        )
    # Without the field transformers builds the layer of T5 v1.0, ReLU without gate.
    projection = config.get("feed_forward_proj", "relu")
    if projection not in GATED_GELU:
        missing = "" if "feed_forward_proj" in config else " (it is not given)"
        raise ValueError(
            f"config.json: feed_forward_proj is {projection!r}{missing}; supported is"
            f" {GATED_GELU[0]!r}, that is T5 v1.1, Flan-T5 or mT5, not T5 v1.0"
        )
    refuse_unlike(config, _ONLY, "a T5 encoder")
    names = [name for name in network_fields(T5Config) if name not in ("family", "weights")]
    said = {name: config[name] for name in names if name in config}
    return typed_fields(T5Config, said, "config.json")


DETECTOR = Detector(
    required={"blocks/attn/q/kernel": 2, BUCKETS: 2},
    read=read,
    asks={},
    from_hub=from_hub,
)
