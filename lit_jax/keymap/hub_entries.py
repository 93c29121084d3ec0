"""Entries of the config.json beside a Hugging Face file, refused where they are of another kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lit_jax.config import from_mapping

T = TypeVar("T")

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_FILE = "model.safetensors"

DIFFUSERS_VERSION = "0.42.1"
"""Version whose classes and field names are exported."""


def refuse_unlike(
    config: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], network: str
) -> None:
    """Raise ValueError for an entry with a value that `only` does not list."""
    for entry, values in only.items():
        if entry in config and config[entry] not in values:
            raise ValueError(
                f"config.json: {entry} is {config[entry]!r}; {network} needs"
                f" {' or '.join(map(repr, values))}"
            )


def read_entries(config: Mapping[str, Any], cls: type[T], network: str) -> T:
    """Return the entries that are fields of the dataclass `cls`; null is as good as absent.

    Raises one ValueError that names every absent entry without default, and one for an entry of
    another type.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    said = {f.name: config[f.name] for f in fields if config.get(f.name) is not None}
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in said]:
        raise ValueError(f"config.json: {', '.join(missing)} missing; {network} needs them")
    return from_mapping(cls, said, "config.json")


def outputs_variance(channels: int, outputs: int | None, network: str) -> bool:
    """Return whether `out_channels`, as many as `in_channels` when not said, has variance
    channels."""
    outputs = channels if outputs is None else outputs
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"config.json: out_channels is {outputs}; {network} needs in_channels {channels}, or"
            " twice that with variance channels"
        )
    return outputs == 2 * channels
