"""Weight files: which ones belong to a checkpoint, read tensor by tensor, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lit_jax.keymap.rows import Shape
from lit_jax.storage.files import sha256_file

# Pages of a mapped file count as memory until the mapping goes; it goes after this many bytes.
WINDOW_BYTES = 512 * 2**20

_SHARD = re.compile(r"-\d+-of-\d+\.")
_INDEX = ".index.json"

# transformers calls its pickled files so, and its safetensors "model"; other names are the same in
# both forms.
_SAME_WEIGHTS = {"pytorch_model": "model"}


@dataclass(frozen=True)
class Source:
    """The weight files of one network.

    `shard_of` maps keys to files when an index says so, None for a single file. `hub` is the
    config.json of a Hugging Face folder, {} if there is none.
    """

    name: str
    files: tuple[Path, ...]
    shard_of: Mapping[str, Path] | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)


# What the trainers of Hugging Face libraries leave beside the weights, with the same suffixes.
TRAINER_FILES = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.bin",
    "scheduler.pt",
)


def locate(path: str | Path, suffixes: tuple[str, ...]) -> Source:
    """Return the weight files that a user means by a file, an index or a folder.

    In a folder safetensors are preferred to pickled files whose names mean the same weights. Raises
    ValueError that lists what was found when it is not exactly one checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _locate_in_folder(path, suffixes)
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    if path.name.endswith(_INDEX):
        return _from_index(path)
    if path.suffix not in suffixes:
        raise ValueError(f"--src {path} must end in {', '.join((*suffixes, _INDEX))}")
    if _SHARD.search(path.name):
        raise ValueError(
            f"{path} is one shard of several; name the folder that holds all of them and their"
            f" {_INDEX[1:]}"
        )
    return Source(path.name, (path,), hub=_hub_config(path.parent))


def _locate_in_folder(folder: Path, suffixes: tuple[str, ...]) -> Source:
    names = sorted(
        p.name
        for p in folder.iterdir()
        if not p.name.startswith(".") and p.name not in TRAINER_FILES
    )
    if "model_index.json" in names:
        parts = [n for n in names if (folder / n / "config.json").is_file()]
        raise ValueError(
            f"{folder} is a pipeline of several networks; name one of its folders:"
            f" {', '.join(parts) or 'none has a config.json'}"
        )
    indices = [n for n in names if n.endswith(_INDEX)]
    shards = [n for n in names if _SHARD.search(n)]
    whole = [n for n in names if Path(n).suffix in suffixes and n not in shards]
    found = indices + whole
    if len({_weights_name(n) for n in found}) == 1 and any(_is_safe(n) for n in found):
        # A folder may offer the same weights as safetensors and pickled.
        found = [n for n in found if _is_safe(n)]
    if len(found) == 1:
        if found[0] in indices:
            return _from_index(folder / found[0])
        return Source(found[0], (folder / found[0],), hub=_hub_config(folder))
    if shards and not found:
        raise ValueError(f"{folder} holds shards ({shards[0]}, ...) without their {_INDEX[1:]}")
    raise ValueError(
        f"{folder} does not hold exactly one checkpoint ({', '.join((*suffixes, _INDEX))}), but"
        f" {', '.join((found or names)[:8]) or 'nothing'}; name a file"
    )


def _is_safe(name: str) -> bool:
    return name.endswith((".safetensors", f".safetensors{_INDEX}"))


def _weights_name(name: str) -> str:
    """Return what a file or index is named after, whatever its form."""
    stem = Path(name.removesuffix(_INDEX)).stem
    return _SAME_WEIGHTS.get(stem, stem)


def _from_index(path: Path) -> Source:
    """Return all shards that an index file names."""
    weight_map = _json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} is no index of shards: it has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path} names the shard {name!r}, which is no file name")
    files = tuple(path.parent / name for name in sorted(set(weight_map.values())))
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{path.parent} lacks the shards {', '.join(missing)} of {path.name}")
    shard_of = {key: path.parent / name for key, name in weight_map.items()}
    return Source(path.name, files, shard_of, _hub_config(path.parent))


def _hub_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of diffusers or transformers in `folder`."""
    file = folder / "config.json"
    content = _json(file) if file.is_file() else {}
    return content if "_class_name" in content or "model_type" in content else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def require_checkpoint(path: Path) -> None:
    """Raise ValueError for what often lies where a weight file should be."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty (0 bytes); download or copy it again")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself; run: git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} is a web page, not a checkpoint; download it from a direct link")


class Reader(Protocol):
    """One open weight file."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def read(self, key: str) -> np.ndarray: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: the shape now, the numbers on `np.asarray`."""

    reader: Reader
    key: str

    @property
    def shape(self) -> Shape:
        return self.reader.shapes[self.key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.reader.read(self.key), dtype=dtype)


def join_shards(
    source: Source, open_file: Callable[[Path], Reader]
) -> tuple[dict[str, StoredTensor], list[Reader]]:
    """Return all tensors of a source. Raises ValueError that lists every disagreement with its
    index."""
    readers = {file: open_file(file) for file in source.files}
    state: dict[str, StoredTensor] = {}
    problems = []
    for file, reader in readers.items():
        for key in reader.shapes:
            if key in state:
                problems.append(f"{key!r} is in more than one shard")
            elif source.shard_of is not None and source.shard_of.get(key) != file:
                problems.append(f"{key!r} is in {file.name}, which the index does not say")
            state[key] = StoredTensor(reader, key)
    for key, file in (source.shard_of or {}).items():
        if key not in state:
            problems.append(f"{key!r} is not in {file.name}, where the index says it is")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"the shards do not agree with {source.name}:{lines}")
    return state, list(readers.values())


WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""


def without_wrappers(keys: Collection[str]) -> dict[str, str]:
    """Return key -> key without the prefixes of WRAPPERS that all keys share."""
    names = {key: key for key in keys}
    while names:
        shared = [w for w in WRAPPERS if all(name.startswith(w) for name in names.values())]
        if not shared:
            break
        names = {key: name.removeprefix(shared[0]) for key, name in names.items()}
    return names


@contextlib.contextmanager
def new_parents(path: str | Path) -> Iterator[None]:
    """Make the folders above `path`; those that were missing vanish when the block fails."""
    path = Path(path).absolute()
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            # A folder that somebody else has filled meanwhile stays.
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def cannot_write(path: str | Path, error: BaseException) -> ValueError:
    """Return what a library said when the disk refused, in one line that names the file."""
    text = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
    # The libraries give a chain of causes; the operating system's word is the last.
    if found := re.search(r"([^:]+?) [(\[]os[ _]error", text):
        text = found[1].strip()
    return ValueError(f"{path} cannot be written: {text}")


def fingerprint(files: Collection[Path]) -> dict[str, Any]:
    """Return provenance of one or several files: `sha256` of the file, or of the list of all
    shards' sums ("SUM NAME" lines, as sha256sum prints them) which is then given as `files`."""
    sums = {file.name: sha256_file(file) for file in files}
    if len(sums) == 1:
        return {"sha256": next(iter(sums.values()))}
    listing = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    return {"sha256": hashlib.sha256(listing.encode()).hexdigest(), "files": sums}
