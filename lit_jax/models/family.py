"""`Family`: everything the package needs to know of one kind of network, in one object.

A family lives in a folder of its own (`config`, `model`, `torch_keys`, `detect`, ...) whose
`__init__` exports one `FAMILY`; `models.registry` lists them. Free of jax, so that a command line
can be checked before jax is imported: modules that need jax are named and loaded on first use.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_jax.keymap.rows import Layout
from lit_jax.keymap.shapes import Detector
from lit_jax.models.attention import mixer_class

if TYPE_CHECKING:
    from lit_jax.sharding import Rule

Fields = Mapping[str, Any]
"""Fields of a configuration."""


COMPUTE_FIELDS = ("dtype", "remat", "scan_unroll")
"""Fields that say how a network is computed, not which network it is."""


def lazy(target: str) -> Callable[..., Any]:
    """Return the function "package.module:name", which is imported on its first call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return load(target)(*args, **kwargs)

    return call


def load(target: str) -> Any:
    """Import the object "package.module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Roles:
    """Parameters of a denoiser by their role.

    attention     pattern of the paths of its self-attention, compression of keys included
    projection    path of a projection of the self-attention, with "{}" for q, k, v or out
    labels        path of the table of class labels
    null_caption  path of the encoding of the empty caption, which is never trained
    pooled        path of the weights of pooled tokens, which a softmax teacher lacks
    meaning       (path, shape, config) -> the shape with patch axes spelled out
    conflicts     (paths, student, teacher) -> reasons why equal shapes are not the same function
    notes         (student, teacher) -> remarks on what is recomputed
    """

    attention: str
    projection: str
    labels: str = ""
    null_caption: str = ""
    pooled: str = ""
    meaning: Callable[[str, tuple[int, ...], Any], tuple[int, ...]] = lambda path, shape, _: shape
    conflicts: Callable[[Sequence[str], Any, Any], list[str]] = lambda paths, student, teacher: []
    notes: Callable[[Any, Any], list[str]] = lambda student, teacher: []


@dataclass(frozen=True)
class Positions:
    """Position table of a denoiser: `table(config)` is [N, D]. `strict`: a stored table must equal
    it; otherwise it is recomputed with a note, as the official implementation does."""

    table: Callable[[Any], np.ndarray]
    strict: bool


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
    sharding    rules for its parameters, those of exchangeable mixers excluded
    condition   the condition of a denoiser, None for any other network
    process     the meaning of the output of a denoiser
    macs        (config) -> multiply-accumulates per image by component
    components  (pattern of a parameter's path, component); the first that matches counts
    roles       parameters of a denoiser by their role
    positions   the position table of a denoiser
    hub         (config) -> (config.json, weight file) of diffusers or transformers
    as_written  (config, omitted paths) -> the configuration of an exported file without those
    note        (config) -> remark on what a checkpoint does not record, None without one
    untrained   (config) -> reason why a denoiser cannot be trained here, None if it can
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
    sharding: tuple[Rule, ...]
    condition: Literal["label", "caption"] | None = None
    process: Literal["gaussian", "flow"] | None = None
    macs: Callable[[Any], dict[str, int]] | None = None
    components: tuple[tuple[str, str], ...] = ()
    roles: Roles | None = None
    positions: Positions | None = None
    hub: Callable[[Any], tuple[dict[str, Any], str]] | None = None
    as_written: Callable[[Any, Sequence[str]], Any] = lambda config, omitted: config
    note: Callable[[Any], str | None] = lambda config: None
    untrained: Callable[[Any], str | None] = lambda config: None
    sizes: Mapping[str, Fields] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    added: Mapping[str, Fields] = field(default_factory=lambda: MappingProxyType({}))

    def load_module(self) -> Callable[..., Any]:
        """Import the class of the network."""
        loaded: Callable[..., Any] = load(self.module)
        return loaded

    def rules(self, config: Any) -> tuple[Rule, ...]:
        """Return the sharding rules of a network of this family, its mixer included."""
        if self.roles is None:
            return self.sharding
        prefix = self.roles.projection.partition("{")[0]
        own = mixer_class(config.mixer).SHARDING
        return (*self.sharding, *((prefix + path, axes) for path, axes in own))


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
