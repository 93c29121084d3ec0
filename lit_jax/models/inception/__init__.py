"""The FID Inception."""

from __future__ import annotations

from lit_jax.models.family import Family
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.inception.detect import DETECTOR
from lit_jax.models.inception.torch_keys import LAYOUTS

FAMILY = Family(
    name="Inception",
    config=InceptionConfig,
    module="lit_jax.models.inception.model:FIDInception",
    members={"Inception": {"family": "Inception"}},
    layouts=LAYOUTS,
    detect=DETECTOR,
    sharding=((r"((Conv2d|Mixed)_.*/conv|fc)/kernel|bn/(mean|var)", ()),),
)
