"""Writing of model folders: a folder appears whole under its name or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lit_jax.checkpoints.stored import ARRAY_FILES, CONFIG, PARAMS, params_location, read_content
from lit_jax.models.family import architecture
from lit_jax.models.functional import Params
from lit_jax.models.registry import NetworkConfig
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.storage.staging import staged_folder

TOKENIZER, PIECES = Path(TOKENIZER_FILE).parts


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
        params_location(staged)
        check_destination(path, overwrite)


def write_config(
    folder: Path,
    config: NetworkConfig,
    provenance: Mapping[str, Any],
    companions: Mapping[str, Any] | None = None,
) -> None:
    """`config.json` of a model folder. `companions` are the entries that name other networks (see
    `identity`)."""
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
        read_content(path)
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
