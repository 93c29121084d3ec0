"""Files of a model folder or training workdir: `config.json`, and the arrays that orbax wrote."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lit_jax.config import from_mapping, unknown_name
from lit_jax.models import functional
from lit_jax.models.family import network_fields
from lit_jax.models.registry import NetworkConfig, family_named

CONFIG, PARAMS, CHECKPOINTS = "config.json", "params", "checkpoints"

# What orbax writes last or needs first: a directory of arrays without one of them was cut short.
ARRAY_FILES = ("_METADATA", "manifest.ocdbt", "d")

# Inside a step of a training workdir: the checkpoint item, and its entry that is the model.
STATE_ITEM, MODEL_ENTRY = "state", "ema"


def abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return shape and type of an array."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


class StoredArrays:
    """Arrays of the parameters in `path`; `name` is that folder in messages."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self._name = path, name

    @functools.cached_property
    def location(self) -> tuple[Path, str | None]:
        """Fixed when the folder is opened: a run may finish another checkpoint meanwhile."""
        return params_location(self.path)

    @functools.cached_property
    def metadata(self) -> Any:
        directory, entry = self.location
        # The handler reads an item of a run's checkpoint too; a checkpointer would miss, and
        # report, the files that lie one folder up.
        try:
            stored = ocp.PyTreeCheckpointHandler().metadata(directory).tree
        except (ValueError, OSError) as error:
            raise ValueError(f"{directory} is incomplete: its arrays cannot be listed") from error
        return stored[entry] if entry else stored

    def check_shapes(self, target: functional.Params) -> None:
        """Raise ValueError for names and shapes on disk other than those of the configuration."""
        on_disk, needed = (
            {k: tuple(v.shape) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}
            for tree in (self.metadata, target)
        )
        differences = [
            f"{name} is {on_disk.get(name, 'missing')}, {CONFIG} says {needed.get(name, 'nothing')}"
            for name in sorted(set(on_disk) | set(needed))
            if on_disk.get(name) != needed.get(name)
        ]
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise ValueError(
                f"the parameters in {self._name} are not of the size in its {CONFIG}:"
                f" {'; '.join(differences[:3])}{more}"
            )

    def restore(self, target: Any, arguments: Any) -> Any:
        directory, entry = self.location
        if entry:
            target, arguments = {entry: target}, {entry: arguments}
        request = ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=True)
        try:
            restored = ocp.PyTreeCheckpointHandler().restore(directory, args=request)
        except (ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{directory} is incomplete or damaged: {reason}") from error
        return restored[entry] if entry else restored

    def restore_flat(self, flat: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
        target = traverse_util.unflatten_dict(dict(flat), sep="/")
        arguments = jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), target
        )
        return self.restore(target, arguments)


def read_content(path: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder or workdir. Raises ValueError without a "model"
    group."""
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(f"{path} is not a model folder or training workdir: it has no {CONFIG}")
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f'{file} has no "model" group')
    return content


def stored_config(path: Path, model: Mapping[str, Any]) -> NetworkConfig:
    """Return the typed "model" group. Raises ValueError unless its fields are exactly ours."""
    family = family_named(model.get("family"))
    model = {**family.added.get(model["family"], {}), **model}
    where = f'"model" of {path / CONFIG}'
    fields = network_fields(family.config)
    for name in model:
        if name not in fields:
            raise unknown_name(f"field in {where}", name, fields)
    # A missing field would silently become a default.
    if missing := sorted(set(fields) - set(model)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    config: NetworkConfig = from_mapping(family.config, model, where)
    return config


def params_location(path: Path) -> tuple[Path, str | None]:
    """Return the orbax directory, and the entry of its tree that holds the parameters.

    Raises ValueError for a folder without finished parameters. Only names are read.
    """
    directory, entry = path / PARAMS, None
    if not directory.is_dir():
        if not (path / CHECKPOINTS).is_dir():
            raise ValueError(f"{path} is incomplete: it has neither {PARAMS}/ nor {CHECKPOINTS}/")
        # Steps under a bare number are complete; orbax renames them when they are.
        steps = [int(p.name) for p in (path / CHECKPOINTS).iterdir() if p.name.isdigit()]
        if not steps:
            raise ValueError(f"{path / CHECKPOINTS} holds no finished checkpoint yet")
        directory, entry = path / CHECKPOINTS / str(max(steps)) / STATE_ITEM, MODEL_ENTRY
    if missing := [name for name in ARRAY_FILES if not (directory / name).exists()]:
        raise ValueError(f"{directory} is incomplete: it has no {', '.join(missing)}")
    return directory, entry
