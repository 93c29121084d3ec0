"""The architecture of a PixArt or a text-to-image LiT."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_jax.config import KVCompressConfig
from lit_jax.config.pixart import OFFICIAL_HEADS
from lit_jax.weights.detect.dit import learn_sigma, read_mixer
from lit_jax.weights.detect.shapes import Detector, Shapes, mlp_ratio

NULL_CAPTION = "y_embedder/null_caption"
FILTERS = "kv_compress/conv/kernel"
FILTER_PARTS = (
    FILTERS,
    "kv_compress/conv/bias",
    "kv_compress/norm/scale",
    "kv_compress/norm/bias",
)
_FILTER_KEY = re.compile(r"blocks\.(\d+)\.attn\.(sr|norm)\.")

# pe_interpolation is read off a table and rounded to a whole number, else to a half, ... else to
# 1/64, if that is no further away (relatively) than the type of the table can put it.
_STEPS = (1, 2, 4, 8, 16, 32, 64)
_PRECISION = {"float64": 1e-5, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that shapes decide, and the nominal size and position scale of a stored
    position table. A size or scale that is told is left to the check of the whole table."""
    hidden, channels, patch, _ = shapes.expect("x_embedder/kernel")
    depth = shapes.count("blocks/mlp/fc1/kernel")
    found: dict[str, Any] = {
        "family": "PixArt",
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "depth": depth,
        "caption_channels": shapes.expect("y_embedder/fc1/kernel")[1],
        "learn_sigma": learn_sigma(shapes, patch, channels),
        "mlp_ratio": mlp_ratio(shapes.expect("blocks/mlp/fc1/kernel")[0], hidden, told),
        "micro_condition": "csize_embedder/fc1/kernel" in shapes,
        "qk_norm": "blocks/attn/q_norm/scale" in shapes,
    }
    found |= read_mixer(shapes, hidden)
    found |= _null_caption(shapes, told)
    found |= _compression(shapes, depth, told)
    found |= _cross_heads(found["mixer"], hidden, told)
    return found | _positions(shapes, patch, told)


def _null_caption(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Length of the stored null caption. That of early diffusers files may be left out."""
    caption = shapes.of(NULL_CAPTION)
    unwanted = told.get("model_max_length", 0) is None and shapes.layout.name == "diffusers"
    if caption is None or unwanted:
        return {"model_max_length": None}
    return {"model_max_length": shapes.ranked(NULL_CAPTION, caption, 2)[0]}


def _compression(shapes: Shapes, depth: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Layers and factor of key/value compression, from its filters; told samplings that have none
    cannot be compared with anything, except when there are filters of another sampling."""
    wanted = told.get("kv_compress_config")
    if isinstance(wanted, Mapping):
        wanted = KVCompressConfig(**wanted)
    layers = _compressed_layers(shapes, depth)
    if not layers:
        if wanted is None or wanted.sampling == "conv":
            return {"kv_compress_config": None}
        if not wanted.kv_compress_layer:
            raise ValueError(
                f"kv_compress_config.sampling is {wanted.sampling!r}, which leaves no trace in the"
                " checkpoint; say kv_compress_config.kv_compress_layer too"
            )
        return {"kv_compress_config": wanted}
    shape = shapes.expect(FILTERS, block=layers[0])
    factor = shapes.ranked(shapes.key(FILTERS, block=layers[0]), shape, 4)[-1]
    sampling = "conv" if wanted is None else wanted.sampling
    return {"kv_compress_config": KVCompressConfig(sampling, factor, tuple(layers))}


def _compressed_layers(shapes: Shapes, depth: int) -> list[int]:
    """Layers that have the filters of key/value compression, each of them whole: other samplings do
    without, so that an import would not miss a part of them."""
    if shapes.layout.source_of(FILTERS) is None:
        return []
    found = []
    for layer in range(depth):
        keys = [shapes.key(target, block=layer) for target in FILTER_PARTS]
        missing = [key for key in keys if key not in shapes.keys]
        if 0 < len(missing) < len(keys):
            raise ValueError(
                f"layer {layer} has a part of the filters of key/value compression;"
                f" {', '.join(missing)} missing"
            )
        if not missing:
            found.append(layer)
    strays = [key for key in shapes.keys if (m := _FILTER_KEY.match(key)) and int(m[1]) >= depth]
    if strays:
        raise ValueError(f"filters beyond the {depth} layers of the model: {', '.join(strays)}")
    return found


def _cross_heads(mixer: str, hidden: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of the cross-attention leave no trace in shapes. Beside softmax attention they are
    those of the self-attention, beside a linear mixer those of the published model of this
    width."""
    if "cross_num_heads" in told:
        return {}
    return {"cross_num_heads": None} if mixer == "softmax" or hidden in OFFICIAL_HEADS else {}


def _positions(shapes: Shapes, patch: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Nominal size and pe_interpolation of a stored position table on a square grid."""
    shape = shapes.keys.get("pos_embed")
    if shape is None:
        return {}
    _, tokens, _ = shapes.ranked("pos_embed", shape, 3)
    found: dict[str, Any] = {}
    side = math.isqrt(tokens)
    if "input_size" not in told and side * side == tokens:
        found["input_size"] = side * patch
    # Two tokens in a row are needed: the second one says how far apart they stand.
    stored = shapes.tensors.get("pos_embed")
    if "pe_interpolation" not in told and stored is not None and tokens > 1:
        scale = interpolation_of(np.asarray(stored)[0])
        found |= {} if scale is None else {"pe_interpolation": scale}
    return found


def interpolation_of(table_NxD: np.ndarray) -> float | None:
    """pe_interpolation of a position table of more than one column, stored for its nominal grid.

    The second token stands in column 1 / pe_interpolation. Its channels are sine and cosine of that
    times 10000^(-k / (D/4)): the slowest one is unambiguous, and every faster one adds digits. None
    when the code is none of a positive column (then the check of the whole table says so).
    """
    quarter = table_NxD.shape[1] // 4
    code = table_NxD[1].astype(np.float64)
    angles = np.arctan2(code[:quarter], code[quarter : 2 * quarter])
    omega = 10000.0 ** (-np.arange(quarter) / quarter)
    column = angles[-1] / omega[-1]
    for angle, frequency in zip(angles[-2::-1], omega[-2::-1], strict=True):
        turns = np.round((column * frequency - angle) / (2 * np.pi))
        column = (angle + 2 * np.pi * turns) / frequency
    if not column > 0 or not np.isfinite(column):
        return None
    scale = 1 / column
    precision = _PRECISION.get(table_NxD.dtype.name, 0.0)
    for stepped in (round(scale * steps) / steps for steps in _STEPS):
        if abs(stepped - scale) < precision * scale:
            return stepped
    return float(f"{scale:.6g}")


CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")

# What the fields of a diffusers config.json have to be for this network, when they are there.
_FIXED = {
    "norm_type": "ada_norm_single",
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "attention_bias": True,
    "attention_type": "default",
    "double_self_attention": False,
    "only_cross_attention": False,
    "num_vector_embeds": None,
}
_NEEDED = (
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "in_channels",
    "patch_size",
    "sample_size",
    "caption_channels",
)


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a diffusers PixArtTransformer2DModel, or of an early file's Transformer2DModel.

    Raises ValueError for one that no PixArt here can be. Whether there are micro-conditions is read
    from the weights when the file does not say.
    """
    kind = config.get("_class_name", CLASSES[0])
    if kind not in CLASSES:
        raise ValueError(f"config.json: _class_name is {kind!r}; PixArt needs {CLASSES[0]!r}")
    for field, value in _FIXED.items():
        if config.get(field, value) != value:
            raise ValueError(f"config.json: {field} is {config[field]!r}; PixArt needs {value!r}")
    if missing := [field for field in _NEEDED if config.get(field) is None]:
        raise ValueError(f"config.json: {', '.join(missing)} missing; PixArt needs them")
    heads, channels, side = (
        config[field] for field in ("num_attention_heads", "in_channels", "sample_size")
    )
    hidden = heads * config["attention_head_dim"]
    if config.get("cross_attention_dim", hidden) != hidden:
        raise ValueError(
            f"config.json: cross_attention_dim is {config['cross_attention_dim']!r}; PixArt needs"
            f" {hidden}, the width of its {heads} heads of {config['attention_head_dim']}"
        )
    outputs = config.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"config.json: out_channels is {outputs}; PixArt needs in_channels {channels}, or"
            " twice that with variance channels"
        )
    scale = config.get("interpolation_scale")
    found = {
        "hidden_size": hidden,
        "depth": config["num_layers"],
        "num_heads": heads,
        "in_channels": channels,
        "learn_sigma": outputs == 2 * channels,
        "patch_size": config["patch_size"],
        "input_size": side,
        "caption_channels": config["caption_channels"],
        "pe_interpolation": float(max(side // 64, 1) if scale is None else scale),
    }
    if (micro := config.get("use_additional_conditions")) is not None:
        found["micro_condition"] = micro
    return found


def settle(shapes: Shapes, told: dict[str, Any]) -> dict[str, Any]:
    """The constructor of a text-to-image LiT is the official PixArt's, whose `num_heads` the linear
    mixer replaces in the self-attention alone: where the convolution tells other linear heads, the
    number that was said can only be that of the cross-attention."""
    linear = read_mixer(shapes, shapes.expect("x_embedder/kernel")[0]).get("num_heads")
    said = told.get("num_heads", linear)
    if linear is None or said == linear or "cross_num_heads" in told:
        return told
    return told | {"num_heads": linear, "cross_num_heads": said}


def _why_num_heads(shapes: Shapes) -> str:
    if shapes.layout.name == "lit":
        return "no depth-wise convolution tells the head width"
    hidden = shapes.expect("x_embedder/kernel")[0]
    depth = shapes.count("blocks/mlp/fc1/kernel")
    return f"hidden_size {hidden}, depth {depth}, which is no named size"


def _why_cross_heads(shapes: Shapes) -> str:
    hidden = shapes.expect("x_embedder/kernel")[0]
    return f"softmax heads of the cross-attention; hidden_size {hidden} is no named size"


def _why_positions(shapes: Shapes) -> str:
    table = shapes.keys.get("pos_embed")
    return "there is no pos_embed" if table is None else f"pos_embed has shape {table}"


DETECTOR = Detector(
    required={
        "x_embedder/kernel": 4,
        "y_embedder/fc1/kernel": 2,
        "final_layer/linear/kernel": 2,
        "blocks/mlp/fc1/kernel": 2,
    },
    read=read,
    asks={
        "num_heads": (_why_num_heads, "num_heads=HEADS"),
        "cross_num_heads": (_why_cross_heads, "cross_num_heads=HEADS"),
        "input_size": (_why_positions, "input_size=LATENT_SIDE"),
        "pe_interpolation": (_why_positions, "pe_interpolation=SIDE_IN_PIXELS/512"),
    },
    from_hub=from_hub,
    settle=settle,
)
