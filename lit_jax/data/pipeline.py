"""The grain pipeline that turns a data set (see `registry`) into training batches.

The order is shuffle -> repeat -> decode (-> image or mirror image) -> batch -> take this host's
batches (-> float in [-1, 1]). Shuffling and repeating happen on the *global*
stream before it is divided, hence

- every example is seen exactly once per epoch, whatever the batch size: a batch may reach over
  the end of an epoch, nothing is dropped and nothing is seen more often than the rest (with images
  of several sizes, which never share a batch, this holds for each size; `mixture` draws the sizes
  so that none is seen more often than the others);
- global batch k is the same rows in the same order on 1 host and on 8: host h of n holds rows
  h B/n .. (h+1) B/n of it;
- the position is one integer, the number of global batches taken (see `stream`), so a run may go
  on with another number of hosts.

Letters: B batch, N examples, H height, W width, C channels; h x w latent pixels, L their channels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import grain

from lit_jax.config import DataConfig
from lit_jax.data.examples import seeds
from lit_jax.data.latents.examples import latent_examples
from lit_jax.data.latents.schema import read_schema
from lit_jax.data.mixture import Mixture
from lit_jax.data.pixels import pixel_examples
from lit_jax.data.registry import LATENTS, dataset_kind, open_images
from lit_jax.data.sources.image_source import ImageSource
from lit_jax.data.stream import BatchStream

PathLike = str | os.PathLike[str]


def make_train_iterator(
    name: str,
    data_dir: PathLike,
    split: str,
    batch_size: int,
    seed: int,
    *,
    kind: str = "",
    images: ImageSource | None = None,
    image_shape: tuple[int, int, int] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    flip: bool = False,
    labels: bool = True,
    captions: bool = True,
    caption_weights: Mapping[str, float] = MappingProxyType({}),
    workers: int = 0,
) -> BatchStream:
    """Return an endless stream of training batches of one host.

    `kind` is that of `DataConfig`. Pixels are cropped to `image_shape`, or have the one shape that
    the data set records; `images` is the source when it is open already.

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

    Raises ValueError, before a record is read, for unknown names, a batch that is not divisible by
    the hosts or exceeds the split, mirror images or captions that the data set lacks, images that
    do not fit `image_shape`, and data that are not prepared.
    """
    data = DataConfig(name=name, data_dir=str(data_dir), split=split, kind=kind)
    kind = dataset_kind(data)
    if kind == LATENTS:
        folder = Path(data_dir, name)
        schema = read_schema(folder)
        count = schema.count
    else:
        images = images or open_images(data, kind)
        count = len(images)
    _check_request(f"{name}/{split}", count, batch_size, seed, shard_index, shard_count)
    if images is None:
        examples = latent_examples(folder, schema, split, seed, flip, captions, caption_weights)
    elif caption_weights:
        raise ValueError(f"caption_weights are given, but {name} has no captions")
    else:
        examples = pixel_examples(images, image_shape, name, seed, flip, labels)

    names = [name for name in examples.sizes[0].arrays if labels or name != "label"]
    pieces = [size.dataset.batch(batch_size // shard_count) for size in examples.sizes]
    batches = pieces[0]
    if len(pieces) > 1:
        counts = [size.count for size in examples.sizes]
        batches = grain.MapDataset.source(Mixture(pieces, counts, seeds(seed).buckets, shard_count))
    return BatchStream(
        batches.map(functools.partial(examples.finish, names=names)),
        [
            {key: ((batch_size, *size.arrays[key][0]), size.arrays[key][1]) for key in names}
            for size in examples.sizes
        ],
        examples.identity,
        shard_index=shard_index,
        shard_count=shard_count,
        workers=workers,
    )


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
