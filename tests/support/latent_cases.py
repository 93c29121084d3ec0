"""Tiny latents in the real format, and the tiny VAE they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config import DataConfig
from lit_jax.data.latents.schema import (
    BUCKETS,
    NULL_CAPTION,
    LatentSchema,
    dataset_folder,
    read_schema,
    write_array,
    write_schema,
)
from lit_jax.data.latents.writer import LatentExample, write_metadata, write_records
from support import autoencoder_cases
from support.models import vae_identity

NAME = "tiny_latents"
SHAPE = (4, 4, 4)
CLASSES = ("cat", "dog", "eel")
COUNTS = (10, 7, 6)
COUNT = sum(COUNTS)

# A model of these latents, in 4 tokens.
MODEL = {"input_size": 4, "patch_size": 2, "in_channels": 4, "num_classes": 3}


def save_vae(path: Path, **fields: Any) -> Path:
    """The model folder of a VAE that halves the sides of an image."""
    model = autoencoder_cases.tiny(**fields)
    save_model_dir(path, model.config, autoencoder_cases.params_of(model), {"source": "random"})
    return path


def moments(
    index: int, dtype: str = "float32", mirrors: bool = True, shape: tuple[int, ...] = SHAPE
) -> np.ndarray:
    """[1 or 2, h, w, 2 L]: the first mean of an image is its index, of its mirror -1 - index."""
    generator = np.random.default_rng(index)
    height, width, channels = shape
    mean = generator.standard_normal((2, height, width, channels))
    mean[:, 0, 0, 0] = index, -1 - index
    log_variance = generator.uniform(-4, -2, mean.shape)
    both = np.concatenate([mean, log_variance], axis=-1).astype(dtype)
    return both if mirrors else both[:1]


# Features of captions: width 6, at most 5 tokens.
TEXT = {
    "encoder": {
        "id": "tiny-t5",
        "sha256": "0" * 64,
        "tokenizer_sha256": "1" * 64,
        "width": 6,
        "weights": "float",
    },
    "max_length": 5,
    "width": 6,
}


def tokens(index: int, kind: int) -> np.ndarray:
    """[n, 6]: the features of caption `kind` (its number) of an image, all 100 kind + index. Image
    3 lacks kind 0, image 4 lacks kind 1."""
    count = 0 if index == 3 + kind else 1 + (index + kind) % 5
    return np.full((count, 6), 100 * kind + index, np.float32)


def null_caption() -> np.ndarray:
    return np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)


def bucket_of(index: int, schema: LatentSchema) -> int:
    return index % 3 % len(schema.buckets)


def shape_of(index: int, schema: LatentSchema) -> tuple[int, ...]:
    """(h, w, L) of the latent of an image."""
    _, height, width, channels = schema.moments_shapes[
        bucket_of(index, schema) if schema.buckets else 0
    ]
    return height, width, channels // 2


def shard_file(folder: Path, shard: int, count: int) -> Path:
    """File `shard` of `count`."""
    return dataset_folder(folder) / f"latents-train.array_record-{shard:05d}-of-{count:05d}"


def write_latents(
    folder: Path,
    vae: Path,
    *,
    counts: tuple[int, ...] = COUNTS,
    shape: tuple[int, int, int] = SHAPE,
    dtype: str = "float32",
    mirrors: bool = True,
    classes: tuple[str, ...] = CLASSES,
    captions: tuple[str, ...] = (),
    text: bool = False,
    text_dtype: str = "float16",
    sizes: tuple[tuple[int, int], ...] = (),
) -> Path:
    """A folder as the encode job leaves it, `counts` examples per file. With `text`, captions have
    features; with `sizes` (in pixels), image k has size k mod 3 mod their number."""
    schema = LatentSchema(
        vae=dataclasses.asdict(vae_identity(vae)),
        dtype=dtype,
        precision="highest",
        resolution=2 * shape[0],
        latent_shape=shape,
        mirrors=mirrors,
        count=sum(counts),
        skipped=0,
        classes=classes,
        captions=captions,
        text=TEXT | {"dtype": text_dtype} if text else {},
        buckets=sizes,
        source={"kind": "class_folders", "path": "", "name": "", "split": "train", "sha256": ""},
    )
    first = 0
    for shard, count in enumerate(counts):
        examples = (
            LatentExample(
                name=f"{index}.png",
                moments_Mxhxwx2L=moments(index, dtype, mirrors, shape_of(index, schema)),
                label=index % len(classes) if classes else None,
                captions=[f"{kind} {index}" for kind in captions],
                tokens=[tokens(index, number) for number in range(len(captions))],
            )
            for index in range(first, first + count)
        )
        write_records(shard_file(folder, shard, len(counts)), schema, examples)
        first += count
    write_metadata(folder, schema, counts)
    if text:
        write_array(folder / NULL_CAPTION, null_caption())
    if sizes:
        numbers = [bucket_of(index, schema) for index in range(sum(counts))]
        write_array(folder / BUCKETS, np.asarray(numbers, np.uint8))
    write_schema(folder, schema)
    return folder


def prepare(data_dir: Path, name: str = NAME, **fields: Any) -> DataConfig:
    """Latents and VAE under `data_dir`, and the data section of a run on them."""
    vae = data_dir / "vae"
    if not vae.exists():
        save_vae(vae)
    write_latents(data_dir / name, vae, **fields)
    return DataConfig(name=name, data_dir=str(data_dir), vae=str(vae))


def change_schema(folder: Path, **fields: Any) -> None:
    """Overwrites fields of `schema.json`."""
    write_schema(folder, dataclasses.replace(read_schema(folder), **fields))
