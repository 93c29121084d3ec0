"""DiT, LiT and CLEAR on class labels."""

from __future__ import annotations

from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.dit.detect import DETECTOR
from lit_jax.models.dit.hub import hub_config
from lit_jax.models.dit.torch_keys import LAYOUTS
from lit_jax.models.family import Family, Positions, lazy
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.transformer.macs import BLOCK_COMPONENTS
from lit_jax.models.transformer.placement import TRANSFORMER
from lit_jax.models.transformer.roles import LABELLED
from lit_jax.models.transformer.sizes import named_sizes

_DIT = {"family": "DiT", "mixer": "softmax", "num_heads": 16}
_LIT = {"family": "LiT", "mixer": "linear", "num_heads": 4}
_CLEAR = {"family": "CLEAR", "mixer": "window", "num_heads": 16}

FAMILY = Family(
    name="DiT",
    config=DiTConfig,
    module="lit_jax.models.dit.model:DiT",
    members={"DiT": _DIT, "LiT": _LIT, "CLEAR": _CLEAR},
    layouts=LAYOUTS,
    detect=DETECTOR,
    condition="label",
    process="gaussian",
    sharding=TRANSFORMER,
    macs=lazy("lit_jax.models.dit.macs:macs"),
    components=BLOCK_COMPONENTS,
    roles=LABELLED,
    positions=Positions(lambda c: sincos_position_table(c.grid, c.hidden_size), strict=True),
    hub=hub_config,
    sizes=named_sizes("DiT", _DIT, "softmax")
    | named_sizes("LiT", _LIT, "linear")
    | named_sizes("CLEAR", _CLEAR, "softmax"),
    added=dict.fromkeys(("DiT", "LiT"), {"window_size": 8, "down_factor": None}),
)
