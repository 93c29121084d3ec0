"""Images in their own aspect ratio in the encode job."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_jax.commands.encode.job import encode
from lit_jax.config import EncodeConfig, SourceConfig
from lit_jax.data.buckets import nearest, sizes
from lit_jax.data.crop import fill_crop
from lit_jax.data.latents.schema import read_buckets, read_schema
from lit_jax.data.pipeline import make_train_iterator
from lit_jax.data.registry import open_source
from lit_jax.data.transforms import to_float
from support import autoencoder_cases, encode_cases
from support.encode_cases import config_for, stored

RESOLUTION = 64  # sides of 32 to 128
SHAPES = [(70, 70), (40, 80), (9, 90), (64, 65)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_cases.save_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of each of SHAPES (height, width); those of 9 x 90 are too long."""
    root = tmp_path_factory.mktemp("images") / "train"
    root.mkdir()
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SHAPES * 3):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index:03d}.png")
    return root


def bucket_config(vae: Path, images: Path, **changes: Any) -> EncodeConfig:
    source = SourceConfig(kind="folder", path=str(images))
    fields = {"source": source, "buckets": "pixart", "resolution": RESOLUTION} | changes
    return config_for(vae, images, max_skipped_fraction=0.2, device_batch_size=1, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vae: Path, images: Path) -> Path:
    out = tmp_path_factory.mktemp("out") / "latents"
    return encode(bucket_config(vae, images), out, lambda _: None)


def test_moments_in_the_order_of_the_images(finished: Path, vae: Path, images: Path) -> None:
    source = open_source(bucket_config(vae, images).source)
    schema = read_schema(finished)
    assert (schema.count, schema.skipped, schema.crop) == (9, 3, "fill")
    assert schema.buckets == sizes(RESOLUTION) and schema.latent_shape == (32, 32, 4)
    examples, numbers = stored(finished), read_buckets(finished, schema)
    names = [f"{index:03d}.png" for index in range(12) if index % 4 != 2]
    assert [example["name"].decode() for example in examples] == names
    model = autoencoder_cases.tiny()
    for example, number in zip(examples, numbers, strict=True):
        index = int(example["name"][:3])
        size = nearest(*SHAPES[index % 4], RESOLUTION)
        assert schema.buckets[number] == size
        pixels = to_float(fill_crop(source.load(index), *size))
        both = np.stack([pixels, pixels[:, ::-1]])
        wanted = np.asarray(autoencoder_cases.encode(model, both))
        assert example["moments"].shape == (2, size[0] // 2, size[1] // 2, 8)
        np.testing.assert_allclose(example["moments"], wanted, rtol=1e-5, atol=1e-5)


def test_strips_are_skipped(finished: Path) -> None:
    listed = json.loads((finished / "skipped.json").read_text())
    assert [image["index"] for image in listed["images"]] == [2, 6, 10]
    assert list(listed["reasons"]) == [
        "height / width is 9 / 90 = 0.1; it must be within 1 / 4.5 and 4.5"
    ]


def test_training_reads_them(finished: Path) -> None:
    batches = make_train_iterator(finished.name, finished.parent, "train", 4, 0, flip=True)
    shapes = {next(batches)["moments"].shape for _ in range(40)}
    assert shapes == {arrays["moments"][0] for arrays in batches.shapes}
    assert len(shapes) == 2  # of 70 x 70 and 64 x 65, and of 40 x 80


def test_resolutions_without_buckets(vae: Path, images: Path, tmp_path: Path) -> None:
    config = bucket_config(vae, images)
    # The VAE halves sides, and models cut latents into patches of two.
    for resolution, message in (
        (32, "multiples of 4; .* 64$"),
        (72, "64 or 128"),
        (96, "of 64, as"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(
                dataclasses.replace(config, resolution=resolution), tmp_path / "out", lambda _: None
            )
    assert not (tmp_path / "out").exists()
