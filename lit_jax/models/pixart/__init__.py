"""PixArt-alpha, PixArt-Sigma, LiT-0.6B and CLEAR on captions."""

from __future__ import annotations

from lit_jax.models.family import Family, Positions, lazy
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.pixart.detect import DETECTOR
from lit_jax.models.pixart.hub import as_written, hub_config
from lit_jax.models.pixart.positions import position_table
from lit_jax.models.pixart.torch_keys import LAYOUTS
from lit_jax.models.transformer.macs import BLOCK_COMPONENTS
from lit_jax.models.transformer.placement import TRANSFORMER
from lit_jax.models.transformer.roles import CAPTIONED

_PIXART = {"family": "PixArt", "mixer": "softmax", "num_heads": 16}

# PixArt-alpha and PixArt-Sigma share one backbone; LiT-0.6B is the same with two linear heads
# (LiT paper, section 4). 512 px; other resolutions set input_size and pe_interpolation.
_XL = {"depth": 28, "hidden_size": 1152, "patch_size": 2}


def untrained(config: PixArtConfig) -> str | None:
    """Return the reason why a model with micro-conditions cannot be trained here."""
    if not config.micro_condition:
        return None
    return (
        "micro_condition is True, but the data hold no original sizes; train with"
        " model.overrides.micro_condition=False, as PixArt-Sigma does"
    )


FAMILY = Family(
    name="PixArt",
    config=PixArtConfig,
    module="lit_jax.models.pixart.model:PixArt",
    members={"PixArt": _PIXART},
    layouts=LAYOUTS,
    detect=DETECTOR,
    condition="caption",
    process="gaussian",
    sharding=(
        *TRANSFORMER,
        (r"blocks/scale_shift_table|scale_shift_table|final_layer/scale_shift_table", ()),
        (r"kv_compress/conv/kernel|(csize|ar)_embedder/fc\d/kernel|y_embedder/null_caption", ()),
    ),
    macs=lazy("lit_jax.models.pixart.macs:macs"),
    components=BLOCK_COMPONENTS,
    roles=CAPTIONED,
    positions=Positions(position_table, strict=False),
    hub=hub_config,
    as_written=as_written,
    untrained=untrained,
    sizes={
        "PixArt-Alpha-XL/2": _PIXART | _XL | {"model_max_length": 120},
        "PixArt-Sigma-XL/2": _PIXART | _XL | {"model_max_length": 300},
        "LiT-0.6B": _PIXART | _XL | {"mixer": "linear", "num_heads": 2},
        "CLEAR-PixArt-Sigma-XL/2": _PIXART | _XL | {"mixer": "window"},
    },
    aliases={"pred_sigma": "learn_sigma"},
    added={"PixArt": {"window_size": 8, "down_factor": None}},
)
