"""The registry of data sets and the grain pipeline that turns one into training batches.

A data set is a row of `DATASETS` (pixels) or a folder of latents, which `python -m lit_jax encode`
wrote. The order of the pipeline is shuffle -> repeat -> decode (-> image or mirror image) -> batch
-> take this host's batches (-> float in [-1, 1]). Shuffling and repeating happen on the *global*
stream before it is divided, hence

- every example is seen exactly once per epoch, whatever the batch size: a batch may reach over
  the end of an epoch, nothing is dropped and nothing is seen more often than the rest (with images
  of several sizes, which never share a batch, this holds for each size, and `mixture` sees to it
  that no size is seen more often than the others);
- global batch k is the same rows in the same order on 1 host and on 8: host h of n holds rows
  h B/n .. (h+1) B/n of it;
- the position is one integer, the number of global batches taken (see `stream`), so a run may go
  on with another number of hosts.

Letters: B batch, N examples, H height, W width, C channels; h x w latent pixels, L their channels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from lit_jax.config import unknown_name
from lit_jax.data import digits, transforms
from lit_jax.data.latents.examples import latent_examples
from lit_jax.data.latents.schema import SCHEMA, is_latent_folder, read_schema
from lit_jax.data.mixture import Mixture
from lit_jax.data.parts import LABEL, Examples, Part, seeds
from lit_jax.data.stream import BatchStream

PathLike = str | os.PathLike[str]


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
    """Return the row `name` of the registry; ValueError lists the known names and the nearest
    one."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def prepare(name: str, data_dir: PathLike) -> tfds.core.DatasetInfo:
    """Write data set `name` as ArrayRecord under `data_dir` unless it is there already.

    Shows progress on stderr; atomic, so that it may be repeated after an interruption. On several
    hosts that share `data_dir`, call it on one of them only.
    """
    builder = dataset_spec(name).builder(data_dir)
    builder.download_and_prepare()
    return builder.info


def num_examples(name: str, split: str) -> int:
    """Return number of examples of a split, without reading anything. ValueError for unknown
    names."""
    splits = dataset_spec(name).splits
    if split not in splits:
        raise unknown_name(f"split of {name}", split, splits)
    return splits[split]


def open_split(name: str, data_dir: PathLike, split: str) -> Sequence[Mapping[str, Any]]:
    """Return random access to the stored examples {"image": encoded bytes, "label": int} of a
    split.

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
    """Return a whole split in its stored order: images uint8 [N, H, W, C] and labels int32 [N]."""
    source = open_split(name, data_dir, split)
    examples = [source[i] for i in range(len(source))]
    images_NxHxWxC = np.stack([transforms.decode_image(e["image"]) for e in examples])
    return images_NxHxWxC, np.array([e["label"] for e in examples], np.int32)


def is_latents(name: str, data_dir: PathLike) -> bool:
    """Return whether `name` is a folder of latents under `data_dir` and not a row of the registry.

    Raises ValueError when it is neither.
    """
    if name in DATASETS:
        return False
    if is_latent_folder(Path(data_dir, name)):
        return True
    unknown = unknown_name("data set", name, DATASETS)
    raise ValueError(
        f"{unknown}, and {Path(data_dir, name)} holds no latents (no {SCHEMA});"
        " `python -m lit_jax encode` makes them"
    )


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
    labels: bool = True,
    captions: bool = True,
    caption_weights: Mapping[str, float] = MappingProxyType({}),
    workers: int = 0,
) -> BatchStream:
    """Return an endless stream of training batches of one host.

    A batch of pixels is {"image": float32 [b, H, W, C] in [-1, 1], "label": int32 [b]} with
    b = batch_size / shard_count: the rows of host `shard_index` (see the module docstring). A batch
    of latents has "moments" [b, h, w, 2 L] in their stored dtype instead of the image: mean and
    log-variance, not scaled. Without `labels`, and for data without classes, there is no "label".
    Latents with features of captions add "tokens" [b, max_length, width] in their stored dtype,
    padded with zeros, and "mask" int8 [b, max_length], unless `captions` is False.

    A batch holds images of one size, its bucket, which is drawn for every batch with a probability
    proportional to the number of images in it; `BatchStream.shapes` are those of the buckets.

    For every example one kind of captions is drawn, as a function of `seed` and the position in the
    global stream, with the weights that `caption_weights` gives to kinds: 0 to those it does not
    name, all the same when it is empty. Kinds that an image lacks are left out for it.

    Shuffling is new in every epoch and a function of `seed` and the epoch. `flip` replaces each
    example by its mirror image with probability 1/2, as a function of `seed` and the position in
    the global stream (epoch and index), so neither the number of hosts nor a resume changes it.
    `workers` is the number of processes that read; 0 reads in threads of this one.

    Raises ValueError, before anything is read, for unknown names, a batch that is not divisible by
    the hosts or exceeds the split, mirror images that are not there, captions that are not there,
    and data that is not prepared.
    """
    folder = Path(data_dir, name)
    schema = read_schema(folder) if is_latents(name, data_dir) else None
    count = num_examples(name, split) if schema is None else schema.count
    _check_request(f"{name}/{split}", count, batch_size, seed, shard_index, shard_count)
    if schema is None:
        if caption_weights:
            raise ValueError(f"caption_weights are given, but {name} has no captions")
        examples = _pixels(name, data_dir, split, seed, flip)
    else:
        examples = latent_examples(folder, schema, split, seed, flip, captions, caption_weights)

    names = [name for name in examples.parts[0].arrays if labels or name != "label"]
    pieces = [part.dataset.batch(batch_size // shard_count) for part in examples.parts]
    batches = pieces[0]
    if len(pieces) > 1:
        counts = [part.count for part in examples.parts]
        batches = grain.MapDataset.source(Mixture(pieces, counts, seeds(seed).buckets, shard_count))
    return BatchStream(
        batches.map(functools.partial(examples.finish, names=names)),
        [
            {key: ((batch_size, *part.arrays[key][0]), part.arrays[key][1]) for key in names}
            for part in examples.parts
        ],
        examples.identity,
        shard_index=shard_index,
        shard_count=shard_count,
        workers=workers,
    )


def _pixels(name: str, data_dir: PathLike, split: str, seed: int, flip: bool) -> Examples:
    spec, source, drawn = dataset_spec(name), open_split(name, data_dir, split), seeds(seed)
    if spec.in_memory:
        decoded = [transforms.decode_example(source[i]) for i in range(len(source))]
        dataset = grain.MapDataset.source(decoded).shuffle(seed=drawn.order).repeat()
    else:
        dataset = grain.MapDataset.source(source).shuffle(seed=drawn.order).repeat()
        dataset = dataset.map(transforms.decode_example)
    if flip:
        dataset = dataset.random_map(transforms.flip_horizontally, seed=drawn.mirror)
    arrays = {"image": (spec.image_shape, np.dtype(np.float32)), **LABEL}
    return Examples([Part(dataset, arrays)], transforms.normalised, {})


def _check_request(
    title: str, count: int, batch_size: int, seed: int, shard_index: int, shard_count: int
) -> None:
    if seed < 0:
        raise ValueError(f"data seed is {seed}; it must be at least 0")
    if shard_count < 1 or not 0 <= shard_index < shard_count:
        raise ValueError(
            f"shard_index {shard_index} of shard_count {shard_count}; the index must be in"
            " [0, shard_count)"
        )
    if shard_count > count:
        raise ValueError(
            f"{shard_count} hosts share the {count} examples of {title}; use at most {count} hosts"
        )
    if batch_size < 1 or batch_size % shard_count:
        raise ValueError(
            f"batch_size {batch_size} is not divisible by {shard_count} hosts; choose a multiple"
            f" of {shard_count}"
        )
    if batch_size > count:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {count} examples of {title}; use at most {count}"
        )
