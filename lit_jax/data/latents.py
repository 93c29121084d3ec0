"""Reading the latents that `python -m lit_jax encode` writes (see `schema` for the format).

Records are parsed here and not by TFDS, whose general parser takes four times as long (51 against
13 microseconds for a record of 66 KB).

Letters: M the image and its mirror image (2, or 1 without mirrors), h x w latent pixels, L latent
channels; the 2 L moments are the mean, then the log-variance.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from lit_jax.config import unknown_name
from lit_jax.data.open_files import allow_open_files
from lit_jax.data.schema import LatentSchema, dataset_folder

Example = Mapping[str, Any]


def open_records(folder: Path, schema: LatentSchema, split: str) -> Sequence[bytes]:
    """Random access to the serialized examples of a split. May be pickled.

    Raises ValueError for an unknown split, for files that are missing, and when the records are not
    what the schema says.
    """
    if split != schema.split:
        raise unknown_name(f"split of {folder}", split, [schema.split])
    stored = check_files(folder, schema)
    allow_open_files(len(stored.filepaths))
    # Readers of our own: those of TFDS would carry the whole builder into worker processes.
    records: Sequence[bytes] = ArrayRecordDataSource(stored.file_instructions)
    _check_record(records[0], schema, folder)
    return records


def check_files(folder: Path, schema: LatentSchema) -> tfds.core.SplitInfo:
    """Where the examples of a schema lie, all of them; ValueError when files are missing, cut
    short, or not those of the schema. Looks at names and sizes only."""
    try:
        stored = tfds.builder_from_directory(dataset_folder(folder)).info.splits[schema.split]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{dataset_folder(folder)} is not a whole data set ({error}); copy the folder again"
        ) from error
    if stored.num_examples != schema.count:
        raise ValueError(
            f"{folder} holds {stored.num_examples} {schema.split} examples, its schema says"
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


def examples(
    records: Sequence[bytes], schema: LatentSchema, shuffle_seed: int, mirror_seed: int | None
) -> grain.MapDataset[Example]:
    """The endless, shuffled stream of {"moments": [h, w, 2 L], "label": int32 (with classes)}.

    With `mirror_seed`, the image and its mirror image have probability 1/2 each, decided by that
    seed and the position in the stream; without, it is always the image.
    """
    dataset = grain.MapDataset.source(records).shuffle(seed=shuffle_seed).repeat()
    dataset = dataset.map(functools.partial(decode_record, schema=schema))
    if mirror_seed is None:
        return dataset.map(image_itself)
    return dataset.random_map(image_or_mirror, seed=mirror_seed)


def decode_record(record: bytes, schema: LatentSchema) -> dict[str, Any]:
    """A serialized example as {"moments": [M, h, w, 2 L], "label": int32 (with classes)}, the
    moments in the dtype they are stored in. They share memory with `record`."""
    features = tf_example_pb2.Example.FromString(record).features.feature
    moments = np.frombuffer(features["moments"].bytes_list.value[0], schema.dtype)
    example: dict[str, Any] = {"moments": moments.reshape(schema.moments_shape)}
    if schema.classes:
        example["label"] = np.int32(features["label"].int64_list.value[0])
    return example


def image_itself(example: Example) -> dict[str, Any]:
    """Keeps the moments of the image."""
    return {**example, "moments": example["moments"][0]}


def image_or_mirror(example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """Keeps the moments of the image or of its mirror image.

    Mirroring the moments themselves would not do: the encoder is not symmetric.
    """
    return {**example, "moments": example["moments"][int(rng.random() < 0.5)]}


def _check_record(record: bytes, schema: LatentSchema, folder: Path) -> None:
    try:
        decode_record(record, schema)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"the records of {folder} do not hold moments {schema.moments_shape} {schema.dtype}"
            f" ({error}); encode the images again, into an empty folder"
        ) from error
