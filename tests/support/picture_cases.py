"""Small pictures of several sizes, in class folders and as a TFDS data set in ArrayRecord."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lit_jax.data.crop import center_crop

CLASSES = ("cat", "dog", "newt")
COUNT = 12
SIDE = 8


def picture(index: int) -> Image.Image:
    """Picture `index`: noise of its own, 8 to 13 pixels high and 17 wide."""
    shape = (8 + index % 6, 17, 3)
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8))


def expected(index: int, channels: int = 3) -> np.ndarray:
    """The example of a picture, float32 [SIDE, SIDE, channels] in [-1, 1]."""
    image = center_crop(picture(index), SIDE)
    if channels == 1:
        image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def label(index: int) -> int:
    return index % len(CLASSES)


def write_folders(root: Path) -> Path:
    for index in range(COUNT):
        folder = root / CLASSES[label(index)]
        folder.mkdir(parents=True, exist_ok=True)
        picture(index).save(folder / f"{index:02d}.png")
    return root


class Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(COUNT):
            file = io.BytesIO()
            picture(index).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file, "label": label(index)}


def write_tfds(data_dir: Path) -> Path:
    Pictures(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir
