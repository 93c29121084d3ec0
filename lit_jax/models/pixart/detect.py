"""The architecture of a PixArt or a text-to-image LiT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_jax.keymap.hub_entries import read_entries, refuse_unlike
from lit_jax.keymap.shapes import Detector, Shapes
from lit_jax.models.attention import is_softmax
from lit_jax.models.pixart.config import OFFICIAL_HEADS, KVCompressConfig
from lit_jax.models.transformer.detect import (
    ONLY,
    REQUIRED,
    HubBackbone,
    read_backbone,
    read_mixer,
    why_num_heads,
)
from lit_jax.models.transformer.positions import read_positions, why_no_scale, why_no_size

NULL_CAPTION = "y_embedder/null_caption"
FILTERS = "kv_compress/conv/kernel"
FILTER_PARTS = (
    FILTERS,
    "kv_compress/conv/bias",
    "kv_compress/norm/scale",
    "kv_compress/norm/bias",
)
_FILTER_KEY = re.compile(r"blocks\.(\d+)\.attn\.(sr|norm)\.")


def read(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that shapes decide, and the nominal size and position scale of a stored
    position table. A size or scale that is told is left to the check of the whole table."""
    found = read_backbone(shapes, told)
    found |= {
        "family": "PixArt",
        "caption_channels": shapes.expect("y_embedder/fc1/kernel")[1],
        "micro_condition": "csize_embedder/fc1/kernel" in shapes,
        "qk_norm": "blocks/attn/q_norm/scale" in shapes,
    }
    found |= _null_caption(shapes, told)
    found |= _compression(shapes, found["depth"], told)
    found |= _cross_heads(found["mixer"], found["hidden_size"], told)
    return found | read_positions(shapes, told)


def _null_caption(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return length of the stored null caption. That of early diffusers files may be left out."""
    caption = shapes.of(NULL_CAPTION)
    unwanted = told.get("model_max_length", 0) is None and shapes.layout.name == "diffusers"
    if caption is None or unwanted:
        return {"model_max_length": None}
    return {"model_max_length": shapes.ranked(NULL_CAPTION, caption, 2)[0]}


def _compression(shapes: Shapes, depth: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return layers and factor of key/value compression, from its filters; told samplings that have
    none cannot be compared with anything, except when there are filters of another sampling."""
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
    """Return layers that have the filters of key/value compression, each of them whole: other
    samplings do without, so that an import would not miss a part of them."""
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
    """Return heads of the cross-attention leave no trace in shapes. Beside softmax attention they
    are those of the self-attention, beside a linear mixer those of the published model of this
    width."""
    if "cross_num_heads" in told:
        return {}
    known = is_softmax(mixer) or hidden in OFFICIAL_HEADS
    return {"cross_num_heads": None} if known else {}


@dataclass(frozen=True, kw_only=True)
class HubEntries(HubBackbone):
    """Entries of a diffusers config.json for a PixArt."""

    caption_channels: int
    interpolation_scale: float | None = None
    use_additional_conditions: bool | None = None


CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")

# What other entries have to be for this network, when they are there.
_ONLY: dict[str, tuple[Any, ...]] = ONLY | {
    "_class_name": CLASSES,
    "norm_type": ("ada_norm_single",),
    "norm_eps": (1e-6,),
    "attention_type": ("default",),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
    "num_vector_embeds": (None,),
}


def from_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a diffusers PixArtTransformer2DModel, or of an early file's
    Transformer2DModel.

    Raises ValueError for one that no PixArt here can be. Whether there are micro-conditions is read
    from the weights when the file does not say.
    """
    refuse_unlike(config, _ONLY, "PixArt")
    said = read_entries(config, HubEntries, "PixArt")
    found = said.fields("PixArt")
    if config.get("cross_attention_dim", found["hidden_size"]) != found["hidden_size"]:
        raise ValueError(
            f"config.json: cross_attention_dim is {config['cross_attention_dim']!r}; PixArt needs"
            f" {found['hidden_size']}, the width of its {said.num_attention_heads} heads of"
            f" {said.attention_head_dim}"
        )
    scale = said.interpolation_scale
    found["caption_channels"] = said.caption_channels
    found["pe_interpolation"] = float(max(said.sample_size // 64, 1)) if scale is None else scale
    if said.use_additional_conditions is not None:
        found["micro_condition"] = said.use_additional_conditions
    return found


def settle(shapes: Shapes, told: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor of a text-to-image LiT is the official PixArt's, whose `num_heads` the
    linear mixer replaces in the self-attention alone: where the convolution tells other linear
    heads, the number that was said can only be that of the cross-attention."""
    if told.get("model_max_length") is not None and NULL_CAPTION not in shapes:
        # The official constructor always has it; a file without the caption holds none.
        told = told | {"model_max_length": None}
    hidden = shapes.expect("x_embedder/kernel")[0]
    linear = read_mixer(shapes, hidden, told).get("num_heads")
    said = told.get("num_heads", linear)
    if linear is None or said == linear or "cross_num_heads" in told:
        return told
    return told | {"num_heads": linear, "cross_num_heads": said}


def _why_cross_heads(shapes: Shapes) -> str:
    hidden = shapes.expect("x_embedder/kernel")[0]
    return f"softmax heads of the cross-attention; hidden_size {hidden} is no named size"


DETECTOR = Detector(
    required=REQUIRED | {"y_embedder/fc1/kernel": 2},
    read=read,
    asks={
        "num_heads": (why_num_heads, "num_heads=HEADS"),
        "cross_num_heads": (_why_cross_heads, "cross_num_heads=HEADS"),
        "input_size": (why_no_size, "input_size=LATENT_SIDE"),
        "pe_interpolation": (why_no_scale, "pe_interpolation=SIDE_IN_PIXELS/512"),
    },
    from_hub=from_hub,
    settle=settle,
    assumed={"pe_interpolation": "interpolation_scale"},
)
