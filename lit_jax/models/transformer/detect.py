"""Detection of the backbone of a diffusion transformer from shapes and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_jax.keymap.hub_entries import outputs_variance
from lit_jax.keymap.shapes import Shapes, mlp_ratio

REQUIRED = {"x_embedder/kernel": 4, "final_layer/linear/kernel": 2, "blocks/mlp/fc1/kernel": 2}
"""Parameters that every one of them has -> number of axes."""

POOL = "blocks/attn/pool/kernel"

ONLY: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu-approximate",),
    "norm_elementwise_affine": (False,),
    "attention_bias": (True,),
}
"""Entries of a diffusers config.json -> what they have to be when they are there."""


def read_backbone(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return width, depth, patches, channels, and the mixer with the parts of it that are there."""
    hidden, channels, patch, _ = shapes.expect("x_embedder/kernel")
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "in_channels": channels,
        "patch_size": patch,
        "depth": shapes.count("blocks/mlp/fc1/kernel"),
        "learn_sigma": learn_sigma(shapes, patch, channels),
        "mlp_ratio": mlp_ratio(shapes.expect("blocks/mlp/fc1/kernel")[0], hidden, told),
    }
    return found | read_mixer(shapes, hidden, told)


def learn_sigma(shapes: Shapes, patch: int, channels: int) -> bool:
    """Return whether the last layer has variance channels; ValueError for any other count of
    rows."""
    outputs = shapes.expect("final_layer/linear/kernel")[0]
    single = patch * patch * channels
    if outputs not in (single, 2 * single):
        key = shapes.key("final_layer/linear/kernel")
        raise ValueError(
            f"{key} has {outputs} rows; patch size {patch} and {channels}"
            f" channels need {single}, or twice that with learn_sigma"
        )
    return outputs == 2 * single


def read_mixer(shapes: Shapes, hidden: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return softmax attention, everywhere or in windows, or the parts of Algorithm 1 that are
    there."""
    bias = "blocks/attn/k/bias" in shapes
    if shapes.layout.name != "lit":
        return {"qkv_bias": bias} | _softmax_or_window(shapes, told)
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


def _softmax_or_window(shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return windows leave no trace but the weights of their pooled tokens, if they have any;
    without, the model has them if that was said. ValueError when nobody said how large they are."""
    stored = shapes.of(POOL)
    windows = told.get("mixer") == "window" or told.get("family") == "CLEAR"
    if stored is None:
        return {"mixer": "window", "down_factor": None} if windows else {"mixer": "softmax"}
    if not windows and "window_size" not in told:
        raise ValueError(
            f"key {shapes.key(POOL)!r} is that of a CLEAR, whose window leaves no trace in the"
            " checkpoint; pass --set window_size=RADIUS, 8, 16 or 32 in the published ones"
        )
    return {"mixer": "window", "down_factor": shapes.ranked(POOL, stored, 7)[3]}


def why_num_heads(shapes: Shapes) -> str:
    """Return why shapes leave the number of heads open."""
    if shapes.layout.name == "lit":
        return "no depth-wise convolution tells the head width"
    hidden = shapes.expect("x_embedder/kernel")[0]
    depth = shapes.count("blocks/mlp/fc1/kernel")
    return f"hidden_size {hidden}, depth {depth}, which is no named size"


@dataclass(frozen=True, kw_only=True)
class HubBackbone:
    """Entries of a diffusers config.json for the backbone; those without default are required."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    in_channels: int
    patch_size: int
    sample_size: int
    out_channels: int | None = None

    def fields(self, network: str) -> dict[str, Any]:
        """Return the same in our names; ValueError for channels that `network` does not put out."""
        return {
            "hidden_size": self.num_attention_heads * self.attention_head_dim,
            "depth": self.num_layers,
            "num_heads": self.num_attention_heads,
            "in_channels": self.in_channels,
            "learn_sigma": outputs_variance(self.in_channels, self.out_channels, network),
            "patch_size": self.patch_size,
            "input_size": self.sample_size,
        }
