"""PixArt-alpha, PixArt-Sigma, LiT-0.6B and CLEAR on captions."""

from __future__ import annotations

from lit_jax.models.family import Family
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.pixart.detect import DETECTOR
from lit_jax.models.pixart.torch_keys import LAYOUTS

_PIXART = {"family": "PixArt", "mixer": "softmax", "num_heads": 16}

# PixArt-alpha and PixArt-Sigma share one backbone; LiT-0.6B is the same with two linear heads
# (LiT paper, section 4). 512 px; other resolutions set input_size and pe_interpolation.
_XL = {"depth": 28, "hidden_size": 1152, "patch_size": 2}

FAMILY = Family(
    name="PixArt",
    config=PixArtConfig,
    module="lit_jax.models.pixart.model:PixArt",
    members={"PixArt": _PIXART},
    layouts=LAYOUTS,
    detect=DETECTOR,
    condition="caption",
    process="gaussian",
    sizes={
        "PixArt-Alpha-XL/2": _PIXART | _XL | {"model_max_length": 120},
        "PixArt-Sigma-XL/2": _PIXART | _XL | {"model_max_length": 300},
        "LiT-0.6B": _PIXART | _XL | {"mixer": "linear", "num_heads": 2},
        "CLEAR-PixArt-Sigma-XL/2": _PIXART | _XL | {"mixer": "window"},
    },
    aliases={"pred_sigma": "learn_sigma"},
    added={"PixArt": {"window_size": 8, "down_factor": None}},
)
