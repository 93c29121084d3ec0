"""Reading the latents that `python -m lit_jax encode` writes (see `schema` for the format).

Records are parsed here, since the general parser of TFDS takes four times as long (51 instead of
13 microseconds for a record of 66 KB).

Letters: M the image and its mirror image (2, or 1 without mirrors), h x w latent pixels, L latent
channels; the 2 L moments are the mean, then the log-variance. Examples that a model has drawn have
L numbers: the sample.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from lit_jax.config import unknown_name
from lit_jax.data.latents.schema import DRAWN, TOKENS, LatentSchema, dataset_folder
from lit_jax.data.open_files import allow_open_files

Example = Mapping[str, Any]


def open_records(folder: Path, schema: LatentSchema, split: str) -> Sequence[bytes]:
    """Return random access to the serialized examples of a split. May be pickled.

    Raises ValueError for an unknown split, and for files that are missing.
    """
    if split != schema.split:
        raise unknown_name(f"split of {folder}", split, [schema.split])
    stored = check_files(folder, schema)
    allow_open_files(len(stored.filepaths))
    # The data source of TFDS would pickle the whole builder for worker processes.
    records: Sequence[bytes] = ArrayRecordDataSource(stored.file_instructions)
    return records


def check_files(folder: Path, schema: LatentSchema) -> tfds.core.SplitInfo:
    """Return the split with the examples of a schema. Raises ValueError when files are missing, cut
    short, or not those of the schema; checks names and sizes only."""
    try:
        stored = tfds.builder_from_directory(dataset_folder(folder)).info.splits[schema.split]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{dataset_folder(folder)} is not a complete data set ({error}); copy the folder again"
        ) from error
    if stored.num_examples != schema.count:
        raise ValueError(
            f"{folder} holds {stored.num_examples} {schema.split} examples, its schema records"
            f" {schema.count}; encode the images again, into an empty folder"
        )
    if missing := [path.name for path in stored.filepaths if not path.exists()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(stored.filepaths)} files, among them"
            f" {missing[0]}; copy the folder again"
        )
    found = sum(os.path.getsize(path) for path in stored.filepaths)
    if found != stored.num_bytes:
        raise ValueError(
            f"the {len(stored.filepaths)} files in {dataset_folder(folder)} have {found:,} bytes,"
            f" not {stored.num_bytes:,}; copy the folder again"
        )
    return stored


@dataclass(frozen=True)
class Draws:
    """Random choices per example: their seeds, None without that choice. With `mirror`, the image
    and its mirror image have probability 1/2 each; with `caption`, one caption is taken by the
    `weights` of their kinds, and without it the example has no caption."""

    mirror: int | None
    caption: int | None
    weights: tuple[float, ...]


def examples(
    records: grain.MapDataset[bytes], schema: LatentSchema, shape: tuple[int, ...], draws: Draws
) -> grain.MapDataset[Example]:
    """Return a stream of serialized examples as {"moments": [h, w, 2 L], "label": int32 (with
    classes), "tokens": [max_length, width] and "mask": int8 [max_length] (with text)}. What a model
    has drawn is "image" [h, w, L] instead of "moments".

    `shape` is that of the stored moments. Random choices depend on the seeds and the position in
    the stream.
    """
    captions = draws.caption is not None
    decode = functools.partial(decode_record, schema=schema, shape=shape, captions=captions)
    dataset = records.map(decode)
    if captions:
        choose = functools.partial(one_caption, schema=schema, weights=draws.weights)
        dataset = dataset.random_map(choose, seed=draws.caption)
    if schema.moments == DRAWN:
        return dataset.map(sample_itself)
    if draws.mirror is None:
        return dataset.map(image_itself)
    return dataset.random_map(image_or_mirror, seed=draws.mirror)


def decode_record(
    record: bytes, schema: LatentSchema, shape: tuple[int, ...], captions: bool = True
) -> dict[str, Any]:
    """Return a serialized example as {"moments": [M, h, w, 2 L or L], "label": int32 (with
    classes), "tokens_K": [n, width] for every kind K of captions (with text, unless `captions` is
    False)}, in the dtypes they are stored in. They share memory with `record`. `shape` is that of
    the moments."""
    features = tf_example_pb2.Example.FromString(record).features.feature
    name = "moments"
    if schema.buckets:
        stored_shape = tuple(features["moments/shape"].int64_list.value)
        if stored_shape != shape:
            raise ValueError(f"moments of shape {stored_shape} instead of {shape}")
        name = "moments/value"
    moments = np.frombuffer(features[name].bytes_list.value[0], schema.dtype)
    example: dict[str, Any] = {"moments": moments.reshape(shape)}
    if schema.classes:
        example["label"] = np.int32(features["label"].int64_list.value[0])
    if schema.text and captions:
        for kind in schema.captions:
            stored = features[TOKENS + kind].bytes_list.value[0]
            tokens = np.frombuffer(stored, schema.text["dtype"])
            example[TOKENS + kind] = tokens.reshape(-1, schema.text["width"])
    return example


def one_caption(
    example: Example, rng: np.random.Generator, schema: LatentSchema, weights: Sequence[float]
) -> dict[str, Any]:
    """Replace the captions by "tokens" [max_length, width], padded with zeros, and "mask" int8
    [max_length] of one of them.

    The kind is drawn with `weights` among those of the image; when their weights are all 0, each is
    equally likely.
    """
    names = [TOKENS + kind for kind in schema.captions]
    there = np.array([len(example[name]) > 0 for name in names])
    chances = np.where(there, weights, 0.0)
    if not chances.any():
        chances = there.astype(float)
    found = example[names[rng.choice(len(names), p=chances / chances.sum())]]
    tokens = np.zeros((schema.text["max_length"], schema.text["width"]), found.dtype)
    tokens[: len(found)] = found
    mask = (np.arange(len(tokens)) < len(found)).astype(np.int8)
    rest = {name: value for name, value in example.items() if name not in names}
    return {**rest, "tokens": tokens, "mask": mask}


def image_itself(example: Example) -> dict[str, Any]:
    """Keep the moments of the image."""
    return {**example, "moments": example["moments"][0]}


def sample_itself(example: Example) -> dict[str, Any]:
    """Return a drawn sample as "image": it is in the scale of the input of a model."""
    rest = {name: value for name, value in example.items() if name != "moments"}
    return {**rest, "image": example["moments"][0]}


def image_or_mirror(example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """Keep the moments of the image or of its mirror image.

    The encoder is not symmetric, so the moments of the image cannot be mirrored instead.
    """
    return {**example, "moments": example["moments"][int(rng.random() < 0.5)]}


def check_record(record: bytes, schema: LatentSchema, shape: tuple[int, ...], folder: Path) -> None:
    """Raise ValueError when a record does not match the schema; see `decode_record`."""
    try:
        decode_record(record, schema, shape)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"the records of {folder} do not hold moments {shape} {schema.dtype}"
            f" ({error}); encode the images again, into an empty folder"
        ) from error
