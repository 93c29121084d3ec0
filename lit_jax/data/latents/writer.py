"""Writing of latents as ArrayRecord files of a TFDS data set, and of its metadata.

The same examples give the same bytes, so that an interrupted job can be resumed and its output
compared file by file. TFDS serialises without TensorFlow.

Letters: M the image and its mirror image (2, or 1 without mirrors), h x w latent pixels, L latent
channels; n tokens of a caption, D the width of their features.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from lit_jax.data.latents.schema import (
    CAPTION,
    DATASET_NAME,
    DATASET_VERSION,
    TOKENS,
    LatentSchema,
    dataset_folder,
)
from lit_jax.storage.files import atomic_path

SUFFIX = "array_record"

# One record per group, as in TFDS, so that each can be read alone. Without the compression of TFDS,
# which saves a tenth of the space of such numbers and makes reading several times slower.
_OPTIONS = "group_size:1,uncompressed"

# Size of an empty file, and of protobuf fields and index per example: for the estimate only.
_BYTES_PER_FILE, _BYTES_PER_EXAMPLE = 131_072, 256


@dataclass(frozen=True)
class LatentExample:
    """One image: moments [M, h, w, 2 L or L] as in `schema`, and for every kind of captions its
    text and (with text) the float32 features [n, D] of its n valid tokens."""

    name: str
    moments_Mxhxwx2L: np.ndarray
    label: int | None = None
    captions: Sequence[str] = ()
    tokens: Sequence[np.ndarray] = field(default=())


def latent_features(schema: LatentSchema) -> tfds.features.FeaturesDict:
    """Return the features of an example, for TFDS. Moments and features of captions are raw
    little-endian bytes of their dtype; with buckets TFDS stores the shape of the moments beside
    them."""
    views, height, width, channels = schema.moments_shape
    sides = (None, None) if schema.buckets else (height, width)
    features: dict[str, tfds.features.FeatureConnector] = {
        "name": tfds.features.Text(),
        "moments": _raw((views, *sides, channels), schema.dtype),
    }
    if schema.classes:
        features["label"] = tfds.features.ClassLabel(names=list(schema.classes))
    for kind in schema.captions:
        features[CAPTION + kind] = tfds.features.Text()
        if schema.text:
            features[TOKENS + kind] = _raw((None, schema.text["width"]), schema.text["dtype"])
    return tfds.features.FeaturesDict(features)


def _raw(shape: tuple[int | None, ...], dtype: str) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding="bytes")


def record_file(folder: Path, schema: LatentSchema, shard: int, num_shards: int) -> Path:
    """Return the path of the records of shard `shard`."""
    return Path(
        str(_template(folder, schema).sharded_filepath(shard_index=shard, num_shards=num_shards))
    )


def write_records(path: Path, schema: LatentSchema, examples: Iterable[LatentExample]) -> int:
    """Write one file, which appears when it is complete, and return the number of examples.

    Raises ValueError for numbers that are not finite or do not fit into the dtype of the schema,
    OSError when the file cannot be written.
    """
    features = latent_features(schema)
    serializer = ExampleSerializer(features.get_serialized_info())
    count = 0
    with atomic_path(path) as temporary:
        with _errors_of_the_disk(path):
            writer = ArrayRecordWriter(str(temporary), _OPTIONS)
        for example in examples:
            encoded = features.encode_example(_fields(example, schema))
            # Maps of protobuf have no defined order.
            record = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
            with _errors_of_the_disk(path):
                writer.write(record)
            count += 1
        with _errors_of_the_disk(path):
            writer.close()
    return count


@contextlib.contextmanager
def _errors_of_the_disk(path: Path) -> Iterator[None]:
    """Convert RuntimeError, which ArrayRecord raises for a full disk, to OSError. Accelerators
    raise RuntimeError for their own errors."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def write_metadata(folder: Path, schema: LatentSchema, counts: Sequence[int]) -> int:
    """Write the metadata of the TFDS data set in a folder of latents, with `counts` examples per
    file; return the total size of the files, which readers check."""
    data_dir = dataset_folder(folder)
    paths = (record_file(folder, schema, shard, len(counts)) for shard in range(len(counts)))
    num_bytes = sum(path.stat().st_size for path in paths)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET_NAME,
        version=tfds.core.Version(DATASET_VERSION),
        data_dir=str(data_dir),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=latent_features(schema))
    info.set_file_format(SUFFIX)
    split = tfds.core.SplitInfo(
        name=schema.split,
        shard_lengths=list(counts),
        num_bytes=num_bytes,
        filename_template=_template(folder, schema),
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(str(data_dir))
    return num_bytes


def estimated_bytes(schema: LatentSchema, images: int, files: int, tokens: float = 0.0) -> int:
    """Return the estimated disk space of `images` examples in `files` files, with `tokens` valid
    tokens per image. All buckets have about the same number of pixels."""
    example = math.prod(schema.moments_shape) * np.dtype(schema.dtype).itemsize
    if schema.text:
        token = schema.text["width"] * np.dtype(schema.text["dtype"]).itemsize
        example += math.ceil(tokens * token)
    return images * (example + _BYTES_PER_EXAMPLE) + files * _BYTES_PER_FILE


def _template(folder: Path, schema: LatentSchema) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=os.fspath(dataset_folder(folder)),
        dataset_name=DATASET_NAME,
        split=schema.split,
        filetype_suffix=SUFFIX,
    )


def _fields(example: LatentExample, schema: LatentSchema) -> dict[str, object]:
    where = f"the moments of {example.name}"
    moments = as_stored(example.moments_Mxhxwx2L, schema.dtype, where, "dtype", "VAE")
    fields: dict[str, object] = {"name": example.name, "moments": moments}
    if schema.classes:
        fields["label"] = example.label
    for index, kind in enumerate(schema.captions):
        fields[CAPTION + kind] = example.captions[index]
        if schema.text:
            where = f"the features of the {kind} caption of {example.name}"
            fields[TOKENS + kind] = as_stored(
                example.tokens[index], schema.text["dtype"], where, "text.dtype", "text encoder"
            )
    return fields


def as_stored(array: np.ndarray, dtype: str, where: str, option: str, network: str) -> np.ndarray:
    """Return the array in `dtype`. Raises ValueError for numbers that are not finite or exceed it.
    For the message: `where` names the array, `option` sets the dtype, `network` computed it."""
    if not np.isfinite(array).all():
        raise ValueError(f"{where} are not finite; check the weights of the {network}")
    largest = float(np.abs(array).max(initial=0.0))
    if largest > float(ml_dtypes.finfo(dtype).max):
        wider = "float32 or bfloat16" if option == "text.dtype" else "float32"
        raise ValueError(
            f"{where} reach {largest:.4g}, more than {dtype} can hold; set {option} to {wider} and"
            " encode into another folder"
        )
    return array.astype(dtype)
