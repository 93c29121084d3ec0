"""The architecture of a checkpoint, read from its keys and shapes and from what the user says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_jax.config import COMPUTE_FIELDS, DiTConfig, from_mapping, typed_fields, unknown_name
from lit_jax.models.zoo import FAMILIES, SIZES
from lit_jax.weights.convert import StateDict
from lit_jax.weights.tables import layout_of

FIELDS = tuple(f.name for f in dataclasses.fields(DiTConfig) if f.name not in COMPUTE_FIELDS)

_FAMILY_OF_LAYOUT = {"dit": "DiT", "lit": "LiT"}
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def detect_config(
    state: StateDict,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    stored: Mapping[str, Any] | None = None,
) -> DiTConfig:
    """The DiTConfig of a state dict.

    `name` is a row of `zoo.SIZES` or a family, `overrides` are DiTConfig fields; both are checked
    against the shapes. `stored` is the architecture that a file of ours carries along. A label
    table of K rows is read as K - 1 classes and the null row, unless `class_dropout_prob=0` or
    `num_classes=K` says otherwise. Raises ValueError that lists every contradiction and exactly
    the fields that are missing.
    """
    wanted = _wanted(name, overrides or {}, stored or {})
    found, problems = _read_shapes(state)
    if problems:
        raise ValueError("cannot read the architecture:\n  " + "\n  ".join(problems))
    found |= _label_table(state, wanted)
    found |= _mlp_ratio(state, found["hidden_size"], wanted)
    found |= _input_size(state, found["patch_size"], wanted)
    if found["family"] == "DiT" and "num_heads" not in wanted:
        found |= _official_heads(found)
    differences = [
        f"{field}: asked for {wanted[field]!r}, the checkpoint has {value!r}"
        for field, value in found.items()
        if field in wanted and _square(wanted[field]) != _square(value)
    ]
    if differences:
        asked = f"--model {name}" if name else "what was asked for"
        raise ValueError(f"the checkpoint is not {asked}:\n  " + "\n  ".join(differences))
    fields = wanted | found
    missing = [field for field in ("num_heads", "input_size") if field not in fields]
    if missing:
        raise ValueError(_missing_message(missing, found, state))
    return from_mapping(DiTConfig, fields, "model")


def _wanted(
    name: str | None, overrides: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """What the user and the file say, the user last."""
    for key in [*stored, *overrides]:
        if key not in FIELDS:
            raise unknown_name("architecture field", key, FIELDS)
    named: dict[str, Any] = {}
    if name is not None:
        if name in SIZES:
            # The family is checked; within it the keys tell which mixer it is.
            named = {k: v for k, v in SIZES[name].items() if k != "mixer"} | {"mlp_ratio": 4.0}
        elif name in FAMILIES:
            named = {"family": name}
        else:
            raise unknown_name("model", name, SIZES | FAMILIES)
    return typed_fields(DiTConfig, {**stored, **named, **overrides}, "model")


def _read_shapes(state: StateDict) -> tuple[dict[str, Any], list[str]]:
    """The fields that keys and shapes decide alone, and the keys too broken to read."""
    layout = layout_of(list(state))
    ranks = {"x_embedder.proj.weight": 4, "final_layer.linear.weight": 2}
    ranks |= {"blocks.0.mlp.fc1.weight": 2}
    ranks |= {k: r for k, r in (("pos_embed", 3), ("blocks.0.attn.dwc.weight", 4)) if k in state}
    ranks |= {k: 2 for k in ("y_embedder.embedding_table.weight",) if k in state}
    problems = [
        f"key {key!r} is missing"
        if key not in state
        else f"{key!r} has shape {tuple(state[key].shape)}; {rank} axes are needed"
        for key, rank in ranks.items()
        if key not in state or len(state[key].shape) != rank
    ]
    problems += [
        f"{key!r} has shape {tuple(state[key].shape)}; no axis may be empty"
        for key in ranks
        if key in state and 0 in state[key].shape
    ]
    if problems:
        return {}, problems
    hidden, channels, patch, _ = state["x_embedder.proj.weight"].shape
    found: dict[str, Any] = {
        "family": _FAMILY_OF_LAYOUT[layout],
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "depth": _depth(state),
    }
    outputs = state["final_layer.linear.weight"].shape[0]
    if outputs not in (patch * patch * channels, 2 * patch * patch * channels):
        problems.append(
            f"final_layer.linear.weight has {outputs} rows; patch size {patch} and {channels}"
            f" channels need {patch * patch * channels}, or twice that with learn_sigma"
        )
    found["learn_sigma"] = outputs == 2 * patch * patch * channels
    found |= _read_mixer(state, layout, hidden)
    return found, problems


def _depth(state: StateDict) -> int:
    """Blocks 0, 1, ... without a gap; later ones are strays, and reported as unused keys."""
    numbers = {match[1] for key in state if (match := _BLOCK.match(key))}
    return next(n for n in itertools.count() if str(n) not in numbers)


def _read_mixer(state: StateDict, layout: str, hidden: int) -> dict[str, Any]:
    if layout == "dit":
        return {"mixer": "softmax", "qkv_bias": "blocks.0.attn.qkv.bias" in state}
    found: dict[str, Any] = {
        "mixer": "focused" if "blocks.0.attn.scale" in state else "linear",
        "qkv_bias": "blocks.0.attn.kv.bias" in state,
        "kernel_size": None,
    }
    if "blocks.0.attn.dwc.weight" in state:
        filters, _, _, size = state["blocks.0.attn.dwc.weight"].shape
        # One filter per channel of a head, shared by all heads.
        found |= {"kernel_size": size, "num_heads": hidden // filters}
    return found


def _label_table(state: StateDict, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and null row. The table alone cannot tell K classes from K - 1 and a null row."""
    if "y_embedder.embedding_table.weight" not in state:
        return {"num_classes": 0}
    rows = state["y_embedder.embedding_table.weight"].shape[0]
    if "class_dropout_prob" in wanted:
        null_row = bool(wanted["class_dropout_prob"])
    else:
        null_row = rows > 1 and ("num_classes" not in wanted or wanted["num_classes"] != rows)
    if null_row:
        return {"num_classes": rows - 1}
    return {"num_classes": rows, "class_dropout_prob": 0.0}


def _mlp_ratio(state: StateDict, hidden: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A ratio whose product with the hidden size truncates to the stored width."""
    width = state["blocks.0.mlp.fc1.weight"].shape[0]
    if "mlp_ratio" in wanted and 0 <= hidden * wanted["mlp_ratio"] - width < 1:
        return {}
    ratio = width / hidden
    if int(hidden * ratio) != width:
        ratio = float(np.nextafter(ratio, np.inf))
    return {"mlp_ratio": ratio}


def _input_size(state: StateDict, patch: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Input size of a square token grid; a stated size is checked with the table itself later."""
    if "pos_embed" not in state or "input_size" in wanted:
        return {}
    side = math.isqrt(state["pos_embed"].shape[1])
    return {"input_size": side * patch} if side * side == state["pos_embed"].shape[1] else {}


def _official_heads(found: Mapping[str, Any]) -> dict[str, Any]:
    heads = {
        row["num_heads"]
        for row in SIZES.values()
        if all(row[field] == found[field] for field in ("family", "depth", "hidden_size"))
    }
    return {"num_heads": heads.pop()} if len(heads) == 1 else {}


def _square(value: Any) -> Any:
    """(16, 16) and 16 are one input size."""
    return value[0] if isinstance(value, (tuple, list)) and len(set(value)) == 1 else value


def _missing_message(missing: list[str], found: Mapping[str, Any], state: StateDict) -> str:
    heads = "no depth-wise convolution tells the head width"
    if found["family"] == "DiT":
        size = f"hidden_size {found['hidden_size']}, depth {found['depth']}"
        heads = f"{size}, which is no named size"
    tokens = "there is no pos_embed"
    if "pos_embed" in state:
        tokens = f"{state['pos_embed'].shape[1]} tokens are not a square grid"
    reasons = {"num_heads": heads, "input_size": tokens}
    example = {"num_heads": "num_heads=HEADS", "input_size": "input_size=HEIGHTxWIDTH"}
    told = "; ".join(f"{field} ({reasons[field]})" for field in missing)
    flags = " ".join(example[field] for field in missing)
    return f"the checkpoint does not tell {told}. Pass --model {found['family']} --set {flags}"
