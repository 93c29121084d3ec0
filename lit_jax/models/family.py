"""`Family`: everything the package needs to know of one kind of network, in one object.

A family lives in a folder of its own (`config`, `model`, `torch_keys`, `detect`, ...) whose
`__init__` exports one `FAMILY`; `models.registry` lists them. Free of jax, so that a command line
can be checked before jax is imported: modules that need jax are named and loaded on first use.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from lit_jax.keymap.rows import Layout
from lit_jax.keymap.shapes import Detector

Fields = Mapping[str, Any]
"""Fields of a configuration."""


COMPUTE_FIELDS = ("dtype", "remat", "scan_unroll")
"""Fields that say how a network is computed, not which network it is."""


@dataclass(frozen=True)
class Family:
    """One kind of network.

    name        the name of the family
    config      frozen dataclass of its architecture, free of jax
    module      "package.module:Class" of the network
    members     names under which such a network is stored and created, as "DiT", "LiT" and "CLEAR"
                -> the fields that tell them apart
    layouts     torch key layouts, for import and export
    detect      reads the architecture from torch keys and shapes
    condition   what a denoiser is conditioned on; None for a network that is no denoiser
    process     what the output of a denoiser means
    sizes       named sizes -> fields of `config`
    aliases     official argument names -> names of fields
    added       member -> fields that later versions added, with their value in older folders
    """

    name: str
    config: type
    module: str
    members: Mapping[str, Fields]
    layouts: tuple[Layout, ...]
    detect: Detector
    condition: Literal["label", "caption"] | None = None
    process: Literal["gaussian", "flow"] | None = None
    sizes: Mapping[str, Fields] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    added: Mapping[str, Fields] = field(default_factory=lambda: MappingProxyType({}))

    def load_module(self) -> Callable[..., Any]:
        """Import the class of the network."""
        module, _, name = self.module.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return loaded


def network_fields(cls: type) -> tuple[str, ...]:
    """Return the fields of `cls` that define a network."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.name not in COMPUTE_FIELDS)


def architecture(config: Any) -> dict[str, Any]:
    """Return the fields of `config` that define the network, ready for JSON (tuples as lists)."""
    fields = dataclasses.asdict(config)
    return {name: _plain(fields[name]) for name in network_fields(type(config))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
