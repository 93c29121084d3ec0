"""Checkpoint files as they arrive in practice, whole and broken, for tests of the converter.

Every builder writes below a path of the caller and returns what a user would name as the source.
A state dict is a mapping from key to array, in torch layout. torch is imported only by builders of
.pt, .pth and .bin files.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

State = Mapping[str, np.ndarray]

SHARD = "model-{:05d}-of-{:05d}.safetensors"
INDEX = "model.safetensors.index.json"


# Whole files.


def write(path: Path, state: State) -> Path:
    """`state` as safetensors or, by the suffix, as torch.save writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        # The writer reads raw memory: a transposed view would be written scrambled.
        save_file({key: np.asarray(value, order="C") for key, value in state.items()}, path)
    else:
        import torch

        torch.save({key: _tensor(value) for key, value in state.items()}, path)
    return path


def half_precision(path: Path, state: State, dtype: str) -> Path:
    """All tensors as "float16" or "bfloat16"."""
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    return write(path, {key: value.astype(kind) for key, value in state.items()})


def non_contiguous(path: Path, state: State) -> Path:
    """A torch file whose tensors are views: every second number of a larger storage, and matrices
    on top of that transposed in memory. Their values are those of `state`."""
    import torch

    views = {}
    for key, value in state.items():
        turned = _tensor(value.T)
        storage = torch.full((*turned.shape, 2), torch.nan, dtype=turned.dtype)
        storage[..., 1] = turned
        view = storage[..., 1]
        views[key] = view.permute(*reversed(range(view.ndim)))
    assert not any(view.is_contiguous() for view in views.values() if view.numel() > 1)
    torch.save(views, path)
    return path


def sharded(folder: Path, state: State, shards: int = 2) -> Path:
    """A folder of safetensors shards and their index, as Hugging Face libraries write it."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in range(shards):
        name = SHARD.format(number + 1, shards)
        part = dict(list(state.items())[number::shards])
        write(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    _write_index(folder, weight_map)
    return folder


# Files that hold another state dict than they should.


def other_family(path: Path) -> Path:
    """The weights of a two-layer perceptron."""
    sizes = {"layers.0": (8, 4), "layers.2": (2, 8)}
    state: dict[str, np.ndarray] = {}
    for name, (rows, columns) in sizes.items():
        state[f"{name}.weight"] = np.ones((rows, columns), np.float32)
        state[f"{name}.bias"] = np.zeros(rows, np.float32)
    return write(path, state)


def renamed_key(path: Path, state: State, key: str, name: str) -> Path:
    """`state` with `key` under another name, in its old place."""
    assert key in state and name not in state
    return write(path, {name if k == key else k: value for k, value in state.items()})


def changed_shape(path: Path, state: State, key: str) -> Path:
    """`state` where the tensor `key` has one row more than it should."""
    longer = np.concatenate([state[key], state[key][:1]])
    return write(path, {**state, key: longer})


# Sharded folders whose parts do not agree.


def missing_shard(folder: Path, state: State) -> Path:
    """The second of two shards was not downloaded."""
    (sharded(folder, state) / SHARD.format(2, 2)).unlink()
    return folder


def missing_index(folder: Path, state: State) -> Path:
    """All shards, but no index."""
    (sharded(folder, state) / INDEX).unlink()
    return folder


def key_missing_in_index(folder: Path, state: State, key: str) -> Path:
    """The index says nothing of a tensor that a shard holds."""
    sharded(folder, state)
    return _change_index(folder, lambda weight_map: weight_map.pop(key))


def key_missing_in_shard(folder: Path, state: State, key: str) -> Path:
    """The index promises a tensor that its shard does not hold."""
    sharded(folder, state)
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][key]
    write(shard, {k: value for k, value in load_file(shard).items() if k != key})
    return folder


def key_in_two_shards(folder: Path, state: State, key: str) -> Path:
    """Both shards hold `key`, with different numbers."""
    sharded(folder, state)
    for number in (1, 2):
        shard = folder / SHARD.format(number, 2)
        write(shard, {**load_file(shard), key: state[key] + number})
    return folder


# Files that are no checkpoint at all, or not any more.


def truncated(path: Path, state: State, kept: float = 0.5) -> Path:
    """The beginning of a file of `state`: a download that broke off. `kept` is the share of bytes;
    at 0 only the first four are left, less than the smallest header."""
    whole = write(path, state).read_bytes()
    path.write_bytes(whole[: max(4, int(kept * len(whole)))])
    return path


class Intruder:
    """An object whose unpickling makes the folder `marker`, as it could do anything else."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.marker,)


def pickle_with_code(path: Path, state: State, marker: Path, plain: bool = False) -> Path:
    """A torch file that runs code when it is unpickled: afterwards `marker` exists.

    `plain` writes a pickle without torch's archive around it, as pickle.dump does.
    """
    content: dict[str, Any] = {"model": {key: _tensor(value) for key, value in state.items()}}
    content["args"] = Intruder(marker)
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        import torch

        torch.save(content, path)
    return path


def html_page(path: Path) -> Path:
    """What a download without the right link saves: a page that asks to log in."""
    path.write_text(
        "<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n"
        "<body><p>You need access to download this file.</p></body></html>\n"
    )
    return path


def empty_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def lfs_pointer(path: Path) -> Path:
    """What a clone without git-lfs leaves in place of a large file."""
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'5f' * 32}\nsize 2700000000\n"
    )
    return path


def several_files(folder: Path, state: State, *names: str) -> Path:
    """A folder with one whole weight file of every name, e.g. of two training steps."""
    for name in names:
        write(folder / name, state)
    return folder


def _write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    content = {"metadata": {"total_size": size}, "weight_map": dict(weight_map)}
    (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    change(weight_map)
    _write_index(folder, weight_map)
    return folder


def _tensor(value: np.ndarray) -> Any:
    """A contiguous torch tensor; numpy's bfloat16 is one that torch does not know."""
    import torch

    value = np.asarray(value, order="C")
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)
