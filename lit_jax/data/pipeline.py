"""The registry of data sets and the grain pipeline that turns one into training batches.

The order of the pipeline is shuffle -> repeat -> decode (-> flip) -> batch -> take this host's
batches -> float in [-1, 1]. Shuffling and repeating happen on the *global* stream before it is
divided, hence

- every example is seen exactly once per epoch, whatever the batch size: a batch may reach over
  the end of an epoch, nothing is dropped and nothing is seen more often than the rest;
- global batch k is the same rows in the same order on 1 host and on 8: host h of n holds rows
  h B/n .. (h+1) B/n of it;
- the position is one integer, the number of local batches taken; it is the same on every host.

Letters: B batch, N examples, H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from lit_jax.config import unknown_name
from lit_jax.data import digits, transforms

PathLike = str | os.PathLike[str]

# Batches read ahead, and threads that read them. Grain's default (500 elements, here batches) is
# meant for single records; the order of the batches does not depend on either number.
_PREFETCH_BATCHES = 16
_READ_THREADS = 4


@dataclass(frozen=True)
class DatasetSpec:
    """A row of `DATASETS`. `splits` gives the number of examples, known before anything is read.

    `in_memory` decodes a split once and keeps it as uint8: for data sets of a few MB, where reading
    a record again costs more than the training step it feeds.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    splits: Mapping[str, int]
    builder: Callable[[PathLike], tfds.core.DatasetBuilder]
    in_memory: bool


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        digits.IMAGE_SHAPE, digits.NUM_CLASSES, digits.SPLIT_SIZES, digits.builder, in_memory=True
    ),
}


def dataset_spec(name: str) -> DatasetSpec:
    """The row `name` of the registry; ValueError lists the known names and the nearest one."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def prepare(name: str, data_dir: PathLike) -> tfds.core.DatasetInfo:
    """Writes data set `name` as ArrayRecord under `data_dir` unless it is there already.

    Shows progress on stderr; atomic, so that it may be repeated after an interruption. On several
    hosts that share `data_dir`, call it on one of them only.
    """
    builder = dataset_spec(name).builder(data_dir)
    builder.download_and_prepare()
    return builder.info


def num_examples(name: str, split: str) -> int:
    """Number of examples of a split, without reading anything. ValueError for unknown names."""
    splits = dataset_spec(name).splits
    if split not in splits:
        raise unknown_name(f"split of {name}", split, splits)
    return splits[split]


def open_split(name: str, data_dir: PathLike, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the stored examples {"image": encoded bytes, "label": int} of a split.

    Raises ValueError for an unknown name or split, and when the data set is not prepared.
    """
    expected = num_examples(name, split)
    missing = (
        f"data set {name!r} is not prepared in {os.fspath(data_dir)!r}; run"
        f" `python -m lit_jax.data {name} {os.fspath(data_dir)}` (`make demo` does it too)"
    )
    if not Path(data_dir).is_dir():
        raise ValueError(missing)
    builder = dataset_spec(name).builder(data_dir)
    if not Path(builder.data_path).is_dir() or split not in builder.info.splits:
        raise ValueError(missing)
    stored = builder.info.splits[split].num_examples
    if stored != expected:
        raise ValueError(
            f"{builder.data_path} holds {stored} {split} examples, not {expected};"
            f" delete that folder and run `python -m lit_jax.data {name} {os.fspath(data_dir)}`"
        )
    # Images stay encoded: this package decodes them, so no decoder of TFDS is asked for.
    return builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def load_split(name: str, data_dir: PathLike, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A whole split in its stored order: images uint8 [N, H, W, C] and labels int32 [N]."""
    source = open_split(name, data_dir, split)
    examples = [source[i] for i in range(len(source))]
    images_NxHxWxC = np.stack([transforms.decode_image(e["image"]) for e in examples])
    return images_NxHxWxC, np.array([e["label"] for e in examples], np.int32)


def make_train_iterator(
    name: str,
    data_dir: PathLike,
    split: str,
    batch_size: int,
    seed: int,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
    flip: bool = False,
) -> grain.DatasetIterator:
    """An endless iterator over training batches of one host.

    A batch is {"image": float32 [b, H, W, C] in [-1, 1], "label": int32 [b]} with
    b = batch_size / shard_count: the rows of host `shard_index` (see the module docstring).

    Shuffling is new in every epoch and a function of `seed` and the epoch. `flip` mirrors each
    example with probability 1/2, as a function of `seed` and the position in the global stream
    (epoch and index), so neither the number of hosts nor a resume changes it.

    The position is exact: `get_state()` / `set_state()`, or through orbax with
    `grain.checkpoint.CheckpointSave(iterator)` and `CheckpointRestore(iterator)`, which write one
    small file per host.

    Raises ValueError, before anything is read, for unknown names, a batch that is not divisible by
    the hosts or exceeds the split, and data that is not prepared.
    """
    _check_request(name, split, batch_size, seed, shard_index, shard_count)
    shuffle_seed, flip_seed = (
        int(s) for s in np.random.SeedSequence(seed).generate_state(2, dtype=np.uint32)
    )
    source = open_split(name, data_dir, split)
    if dataset_spec(name).in_memory:
        decoded = [transforms.decode_example(source[i]) for i in range(len(source))]
        dataset = grain.MapDataset.source(decoded).shuffle(seed=shuffle_seed).repeat()
    else:
        dataset = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat()
        dataset = dataset.map(transforms.decode_example)
    if flip:
        dataset = dataset.random_map(transforms.flip_horizontally, seed=flip_seed)
    dataset = dataset.batch(batch_size // shard_count)[shard_index::shard_count]
    dataset = dataset.map(transforms.normalise)
    options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCH_BATCHES)
    return iter(dataset.to_iter_dataset(options))


def _check_request(
    name: str, split: str, batch_size: int, seed: int, shard_index: int, shard_count: int
) -> None:
    count = num_examples(name, split)
    if seed < 0:
        raise ValueError(f"data seed is {seed}; it must be at least 0")
    if shard_count < 1 or not 0 <= shard_index < shard_count:
        raise ValueError(
            f"shard_index {shard_index} of shard_count {shard_count}; the index must be in"
            " [0, shard_count)"
        )
    if shard_count > count:
        raise ValueError(
            f"{shard_count} hosts share the {count} examples of {name}/{split}; use at most"
            f" {count} hosts"
        )
    if batch_size < 1 or batch_size % shard_count:
        raise ValueError(
            f"batch_size {batch_size} is not divisible by {shard_count} hosts; choose a multiple"
            f" of {shard_count}"
        )
    if batch_size > count:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {count} examples of {name}/{split}; use at most"
            f" {count}"
        )
