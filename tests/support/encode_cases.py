"""What the tests of the encode job share: a tiny VAE, folders of images, a config."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config import EncodeConfig, SourceConfig
from lit_jax.data.latents.schema import dataset_folder, read_schema
from support import autoencoder_cases

SIZE = 16
WORDS = ("a", "red", "blue", "green", "circle", "square", "left", "above", "two", "dog", "cat")


def save_vae(path: Path, **fields: Any) -> Path:
    """A model folder of a tiny VAE, downsampling 2; every parameter drawn."""
    vae = autoencoder_cases.tiny(**fields)
    save_model_dir(path, vae.config, autoencoder_cases.params_of(vae), {"source": "random"})
    return path


def save_images(root: Path, count: int = 21, classes: int = 3, seed: int = 0) -> Path:
    """`count` images of different sizes, in folders of classes."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        path = root / f"class{index % classes}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*rng.integers(SIZE // 2, 4 * SIZE, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return root


def config_for(
    vae: Path, images: Path, kind: str = "class_folders", **changes: Any
) -> EncodeConfig:
    config = EncodeConfig(
        vae=str(vae),
        source=SourceConfig(kind=kind, path=str(images)),
        resolution=SIZE,
        device_batch_size=2,
        shard_size=8,
        workers=2,
    )
    return dataclasses.replace(config, **changes)


def stored(out: Path) -> list[dict[str, Any]]:
    """All examples of a finished folder, read by TFDS."""
    builder = tfds.builder_from_directory(dataset_folder(out))
    return list(builder.as_data_source(read_schema(out).split))


def save_captioned(root: Path, count: int = 11, seed: int = 0) -> Path:
    """`count` images with captions in two kinds: image 1 lacks the short one, image 2 the long one,
    the last image both."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        shape = (*rng.integers(SIZE // 2, 4 * SIZE, 2), 3)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index:03d}.png")
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=index + 3)]
        if index not in (2, count - 1):
            (root / f"{index:03d}.long.txt").write_text(" ".join(words))
        if index not in (1, count - 1):
            (root / f"{index:03d}.short.txt").write_text(words[0])
    return root
