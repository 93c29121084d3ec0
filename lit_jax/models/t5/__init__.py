"""The T5 v1.1 text encoder."""

from __future__ import annotations

from lit_jax.models.family import Family
from lit_jax.models.t5.config import SIZES, T5Config
from lit_jax.models.t5.detect import DETECTOR
from lit_jax.models.t5.hub import hub_config
from lit_jax.models.t5.torch_keys import LAYOUTS
from lit_jax.models.transformer.placement import ATTENTION

_T5 = {"family": "T5"}

FAMILY = Family(
    name="T5",
    config=T5Config,
    module="lit_jax.models.t5.model:T5Encoder",
    members={"T5": _T5},
    layouts=LAYOUTS,
    detect=DETECTOR,
    sharding=(
        ATTENTION,
        (r"blocks/mlp/(wi_\d|wo)/kernel", (None, "fsdp", None)),
        (r"shared/embedding", (None, "fsdp")),
        (r"relative_bias/embedding", ()),
    ),
    hub=hub_config,
    sizes={name: _T5 | row for name, row in SIZES.items()},
    added={"T5": {"weights": "float"}},
)
