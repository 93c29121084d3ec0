"""DiG: gated linear attention on class labels."""

from __future__ import annotations

from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dig.detect import DETECTOR
from lit_jax.models.dig.torch_keys import LAYOUTS
from lit_jax.models.family import Family
from lit_jax.models.transformer.sizes import named_sizes

_DIG = {"family": "DiG", "num_heads": 18}

FAMILY = Family(
    name="DiG",
    config=DiGConfig,
    module="lit_jax.models.dig.model:DiG",
    members={"DiG": _DIG},
    layouts=LAYOUTS,
    detect=DETECTOR,
    condition="label",
    process="gaussian",
    sizes=named_sizes("DiG", _DIG, "gated"),
    aliases={
        "if_skip": "skip",
        "if_zero_init_skip": "skip_zero",
        "if_dw_conv": "dw_conv",
        "if_quad_dir": "quad_dir",
    },
)
