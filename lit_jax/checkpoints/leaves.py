"""The parameters of a model folder, one leaf at a time, for work on more than fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lit_jax.checkpoints.folder import PARAMS, read_config, require_weights
from lit_jax.checkpoints.pairing import abstract_leaves
from lit_jax.checkpoints.streaming import UnreadLeaf
from lit_jax.models.registry import NetworkConfig


def stored_leaves(model_dir: str | Path) -> tuple[NetworkConfig, dict[str, UnreadLeaf]]:
    """Return configuration of a model folder, and path -> leaf, each to be read as float32 (int8 as
    it is) when it is asked for. Raises ValueError when there is no such folder with parameters."""
    path = Path(model_dir).absolute()
    require_weights(path)
    if not (path / PARAMS).is_dir():
        raise ValueError(f"{model_dir} is a training workdir; a model folder ({PARAMS}/) is needed")
    config = read_config(path)
    return config, {
        name: UnreadLeaf(tuple(leaf.shape), leaf.dtype, _reader(path / PARAMS, name, leaf))
        for name, leaf in abstract_leaves(config).items()
    }


def stored_dtypes(model_dir: str | Path) -> tuple[str, ...]:
    """Return what the parameters of a model folder are stored in, as ("bfloat16",)."""
    tree = ocp.PyTreeCheckpointHandler().metadata(Path(model_dir).absolute() / PARAMS).tree
    return tuple(sorted({str(np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)}))


def _reader(directory: Path, name: str, leaf: Any) -> Callable[[], np.ndarray]:
    def nested(value: Any) -> dict[str, Any]:
        tree: dict[str, Any] = traverse_util.unflatten_dict({name: value}, sep="/")
        return tree

    def read() -> np.ndarray:
        arguments = ocp.args.PyTreeRestore(
            item=nested(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)),
            restore_args=nested(ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)),
            partial_restore=True,
        )
        try:
            restored = ocp.PyTreeCheckpointHandler().restore(directory, args=arguments)
        except (ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{directory} is incomplete or damaged: {name}: {reason}") from error
        array: np.ndarray = traverse_util.flatten_dict(restored, sep="/")[name]
        if array.shape != leaf.shape:
            raise ValueError(
                f"{directory}: {name} has shape {array.shape}, its config says {leaf.shape}"
            )
        return array

    return read
