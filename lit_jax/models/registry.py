"""The families of networks: names, sizes, configurations. Free of jax."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_jax.config.typed import from_mapping, unknown_name
from lit_jax.models import autoencoder, dig, dit, inception, pixart, t5
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import Family, Roles
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.t5.config import T5Config

MixerConfig = DiTConfig | PixArtConfig
"""Denoisers whose token mixer is exchangeable: their `mixer` is a row of `attention.MIXERS`."""

LabelledConfig = DiTConfig | DiGConfig
"""Denoisers conditioned on class labels."""

DenoiserConfig = DiTConfig | DiGConfig | PixArtConfig
NetworkConfig = DenoiserConfig | AutoencoderConfig | T5Config | InceptionConfig

FAMILIES: list[Family] = [
    package.FAMILY for package in (dit, dig, pixart, autoencoder, t5, inception)
]


def members() -> dict[str, Family]:
    """Return the names that may stand in the field `family` of a stored architecture."""
    return {name: family for family in FAMILIES for name in family.members}


def sizes() -> dict[str, dict[str, Any]]:
    """Return named sizes, "DiT-S/2" ... "LiT-0.6B", "SD-VAE", "T5-v1.1-XXL" -> fields."""
    return {name: dict(row) for family in FAMILIES for name, row in family.sizes.items()}


def rows() -> dict[str, dict[str, Any]]:
    """Return named sizes and members -> fields of their configuration."""
    named = {name: dict(family.members[name]) for name, family in members().items()}
    return sizes() | named


def family_named(name: Any) -> Family:
    """Return the family of a member ("LiT"). Raises ValueError that lists the known ones."""
    known = members()
    if name not in known:
        raise unknown_name("family", name, known)
    return known[name]


def family_of(config: NetworkConfig | type) -> Family:
    """Return the family of a configuration, or of its class."""
    cls = config if isinstance(config, type) else type(config)
    for family in FAMILIES:
        if issubclass(cls, family.config):
            return family
    raise ValueError(f"{cls.__name__} is the configuration of no family; add it to FAMILIES")


def roles_of(config: DenoiserConfig) -> Roles:
    """Return the roles of the parameters of a denoiser. Raises ValueError for another network."""
    roles = family_of(config).roles
    if roles is None:
        raise ValueError(f"a {config.family} is no denoiser: its parameters have no roles")
    return roles


def config_class(member: Any) -> type[NetworkConfig]:
    """Return the dataclass of a member. Raises ValueError that lists the known ones."""
    cls: type[NetworkConfig] = family_named(member).config
    return cls


def model_family(name: str) -> str:
    """Return the member of a named size, or of a member itself; ValueError for any other name."""
    known = rows()
    if name not in known:
        raise unknown_name("model", name, known)
    return str(known[name]["family"])


def model_config(name: str, **overrides: Any) -> Any:
    """Return the configuration of a named size or of a member, with `overrides` of its fields.

    `dtype` may be a name, a numpy dtype or a scalar type like `jnp.bfloat16`. Raises ValueError for
    an unknown name or field, listing the known ones, and for a value of another type.
    """
    family = family_named(model_family(name))
    known = [f.name for f in dataclasses.fields(family.config)]
    overrides = {_field(family, key, known): value for key, value in overrides.items()}
    for key in overrides:
        if key not in known:
            raise unknown_name(f"argument of {name}", key, known)
    if "dtype" in overrides:
        from lit_jax.models.dit.model import dtype_name

        overrides["dtype"] = dtype_name(overrides["dtype"])
    return from_mapping(family.config, rows()[name] | overrides, name)


def _field(family: Family, key: str, known: list[str]) -> str:
    return key if key in known else family.aliases.get(key, key)
