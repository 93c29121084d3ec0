"""Model folders: `config.json` (architecture and provenance), `params/` (orbax), and the tokenizer
of a text encoder.

A folder appears whole under its name or not at all. A training workdir (`config.json` and
`checkpoints/`) is read the same way; its moving-average parameters are the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lit_jax.config import from_mapping, unknown_name
from lit_jax.models.dit.model import dtype_name
from lit_jax.models.family import architecture, network_fields
from lit_jax.models.functional import Params, abstract_params, with_params
from lit_jax.models.registry import DenoiserConfig, NetworkConfig, family_named
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.storage.staging import staged_folder

CONFIG, PARAMS, CHECKPOINTS = "config.json", "params", "checkpoints"
TOKENIZER, PIECES = Path(TOKENIZER_FILE).parts

# What orbax writes last or needs first: a directory of arrays without one of them was cut short.
ARRAY_FILES = ("_METADATA", "manifest.ocdbt", "d")

# Inside a step of a training workdir: the checkpoint item, and its entry that is the model.
STATE_ITEM, MODEL_ENTRY = "state", "ema"


def save_model_dir(
    path: str | Path,
    config: NetworkConfig,
    params: Params,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a model folder: everything beside it under a temporary name, then one rename.

    Call it on one process. Raises ValueError when `path` exists and `overwrite` is False, and when
    it exists but is no model folder.
    """
    with staged_model_dir(path, overwrite) as staged:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(staged / PARAMS, params)
        write_config(staged, config, provenance)


@contextlib.contextmanager
def staged_model_dir(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to fill beside `path`; it takes that name when the block ends without an
    error, and vanishes otherwise. Raises ValueError as `save_model_dir` does."""
    path = Path(path).absolute()
    check_destination(path, overwrite)
    with staged_folder(path, overwrite) as staged:
        yield staged
        # A writer that failed in silence must not replace anything.
        require_weights(staged)
        check_destination(path, overwrite)


def write_config(
    folder: Path,
    config: NetworkConfig,
    provenance: Mapping[str, Any],
    companions: Mapping[str, Any] | None = None,
) -> None:
    """`config.json` of a model folder. `companions` are the entries that name other networks (see
    `recorded`)."""
    content = {"model": architecture(config), "provenance": dict(provenance)}
    content |= companions or {}
    (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def check_destination(path: str | Path, overwrite: bool) -> None:
    """Raise ValueError unless a model folder may be written at `path`."""
    path = Path(path)
    check_parents(path)
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; name the folder itself: {path.resolve()}")
    if "[" in str(path.absolute()):
        raise ValueError(f"{path.absolute()} holds a '[', which orbax takes for a pattern; rename")
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(f"{path} exists; pass --overwrite (overwrite=True) to replace it")
    if strangers := _not_of_a_model(path):
        raise ValueError(
            f"{path} exists and is not a model folder ({strangers}); choose another destination"
        )


def _not_of_a_model(path: Path) -> str | None:
    """Return what keeps an existing folder from being replaced: only what this package wrote is
    ever deleted, since a slip of the destination must not cost other files."""
    if not path.is_dir():
        return "it is a file"
    names = set(os.listdir(path))
    if others := sorted(names - {CONFIG, PARAMS, TOKENIZER}):
        return f"it holds {', '.join(others[:3])}"
    if TOKENIZER in names and os.listdir(path / TOKENIZER) != [PIECES]:
        return f"{TOKENIZER}/ holds more than {PIECES}"
    if missing := sorted({CONFIG, PARAMS} - names):
        return f"it has no {', '.join(missing)}"
    try:
        _stored_model(path)
    except ValueError as error:
        return str(error)
    return None if (path / PARAMS / ARRAY_FILES[0]).is_file() else f"{PARAMS}/ holds no arrays"


def check_local(path: str | Path, what: str) -> None:
    """Raise ValueError for the address of an object store, which would become a local folder."""
    if ":/" in str(path):  # a Path has lost the second slash of gs://
        raise ValueError(f"{what} {path} is no path of a mounted file system; mount the storage")


def check_parents(path: Path) -> None:
    """Raise ValueError when a file stands where a folder above `path` has to be."""
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise ValueError(f"{path} cannot be written: {parent} is a file, not a folder")
            return


def require_weights(path: str | Path) -> None:
    """Raise ValueError unless `path` is a model folder or training workdir with finished weights.

    Looks at names only, so that a job can ask before it writes or compiles anything.
    """
    _params_location(Path(path).absolute())


def read_config(path: str | Path) -> NetworkConfig:
    """Return the architecture of a model folder or training workdir.

    Raises ValueError when there is no `config.json`, or its fields are not exactly ours.
    """
    model = _stored_model(Path(path))
    family = family_named(model.get("family"))
    model = {**family.added.get(model["family"], {}), **model}
    where = f'"model" of {Path(path) / CONFIG}'
    cls = family.config
    fields = network_fields(cls)
    for name in model:
        if name not in fields:
            raise unknown_name(f"field in {where}", name, fields)
    # A field that is not there would silently become a default.
    if missing := sorted(set(fields) - set(model)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return from_mapping(cls, model, where)


def _stored_model(path: Path) -> dict[str, Any]:
    """Return the "model" group of a folder's `config.json`, unchecked."""
    file = _config_file(path)
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f'{file} has no "model" group')
    model: dict[str, Any] = content["model"]
    return model


def read_denoiser_config(path: str | Path) -> DenoiserConfig:
    """Return as `read_config`, for jobs on any denoiser; ValueError for any other network."""
    config = read_config(path)
    if not isinstance(config, DenoiserConfig):
        raise ValueError(f"{path} holds a {config.family}; a denoiser such as a DiT is needed")
    return config


def load_model_dir(
    path: str | Path, shardings: Params | None = None, param_dtype: Any = "float32"
) -> tuple[NetworkConfig, Params]:
    """Return configuration and parameters of a model folder or training workdir.

    Parameters are numpy arrays, or jax arrays placed by `shardings` (a tree of the same structure),
    in which case every process reads only its own shards. They are stored in float32 or bfloat16
    and arrive in `param_dtype`; int8 matrices stay int8. Raises ValueError when the folder is
    incomplete or its arrays are not those of the configuration.
    """
    path = Path(path).absolute()
    directory, entry = _params_location(path)
    config = read_config(path)
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, held_dtype(leaf.dtype, param_dtype)),
        abstract_params(config),
    )
    # The handler reads an item of a run's checkpoint too; a checkpointer would miss, and report,
    # the files that lie one folder up.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        stored = handler.metadata(directory).tree
    except (ValueError, OSError) as error:
        raise ValueError(f"{directory} is incomplete: its arrays cannot be listed") from error
    _check_shapes(path, stored[entry] if entry else stored, target)
    if shardings is None:
        restore = jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), target
        )
    else:
        restore = jax.tree.map(
            lambda leaf, sharding: ocp.ArrayRestoreArgs(
                sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
            ),
            target,
            shardings,
        )
    if entry:
        target, restore = {entry: target}, {entry: restore}
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=restore, partial_restore=entry is not None
    )
    try:
        restored = handler.restore(directory, args=arguments)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{directory} is incomplete or damaged: {reason}") from error
    return config, restored[entry] if entry else restored


def held_dtype(dtype: Any, param_dtype: Any) -> Any:
    """Return what a parameter that is of type `dtype` in the network is held in when `param_dtype`
    is asked for: integers and their scales stay what they are."""
    return dtype_name(param_dtype) if dtype == np.float32 else dtype


def load_model(model_dir: str | Path, dtype: Any = "float32", param_dtype: Any = "float32") -> Any:
    """Return the model of a model folder or training workdir, computing in `dtype`.

    What comes back is the network that was stored: DiT, PixArt, AutoencoderKL, T5Encoder or
    FIDInception. Parameters are held in `param_dtype`; bfloat16 halves the memory of a large frozen
    network such as T5. Both are a name, a numpy dtype or a scalar type like `jnp.bfloat16`. Raises
    ValueError for another dtype, and what `load_model_dir` raises.
    """
    dtype = dtype_name(dtype)
    config, params = load_model_dir(model_dir, param_dtype=param_dtype)
    params = jax.tree.map(jax.numpy.asarray, params)
    return with_params(dataclasses.replace(config, dtype=dtype), params)


def _config_file(path: Path) -> Path:
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} is not a model folder or training workdir: it has no {CONFIG}")
    return path / CONFIG


def _params_location(path: Path) -> tuple[Path, str | None]:
    """Return the orbax directory, and the entry of its tree that holds the parameters."""
    _config_file(path)
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


def _check_shapes(path: Path, stored: Params, target: Params) -> None:
    """Compare names and shapes on disk with those of the configuration."""
    on_disk = {k: tuple(v.shape) for k, v in traverse_util.flatten_dict(stored, sep="/").items()}
    needed = {k: tuple(v.shape) for k, v in traverse_util.flatten_dict(target, sep="/").items()}
    differences = [
        f"{name} is {on_disk.get(name, 'missing')}, {CONFIG} says {needed.get(name, 'nothing')}"
        for name in sorted(set(on_disk) | set(needed))
        if on_disk.get(name) != needed.get(name)
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ValueError(
            f"the parameters in {path} are not of the size in its {CONFIG}:"
            f" {'; '.join(differences[:3])}{more}"
        )
