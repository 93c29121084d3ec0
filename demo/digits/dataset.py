"""The 1,797 handwritten digits that ship inside scikit-learn, as a TFDS builder.

Source: UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), the test
part, 8 x 8 grey images with 17 levels. scikit-learn carries the file, so nothing is downloaded.

Grey levels: v in 0..16 is stored as round(255 v / 16), which `grey_to_level` inverts exactly.

Splits: every class gives exactly 50 examples to `heldout`, spread evenly over its examples in
scikit-learn's order; the rest is `train`. That makes 500 held-out and 1,297 training images. No
randomness is involved. `train` is what generative models learn and the reference of the distance;
`heldout` trains the judge that measures class accuracy, so the judge never saw a training image of
the generative models. Writers are not separated: the same hands wrote both parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lit_jax.config import SourceConfig
from lit_jax.data.pixels import Pixels
from lit_jax.data.registry import open_source

IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 10
NUM_LEVELS = 17
HELDOUT_PER_CLASS = 50
SPLIT_SIZES = {"train": 1297, "heldout": 500}

_DESCRIPTION = """1,797 handwritten digits, 8 x 8 pixels, one channel, 17 grey levels scaled to
0..255. `heldout` holds 50 images of each class, `train` the other 1,297."""

_CITATION = """@misc{alpaydin1998optdigits,
  title={Optical Recognition of Handwritten Digits},
  author={Alpaydin, E. and Kaynak, C.},
  howpublished={UCI Machine Learning Repository},
  year={1998}}"""


def level_to_grey(levels: np.ndarray) -> np.ndarray:
    """Return levels 0..16 of any shape to uint8 grey values 0..255, rounded to the nearest."""
    return np.rint(np.asarray(levels, np.float64) * 255 / (NUM_LEVELS - 1)).astype(np.uint8)


def grey_to_level(greys: np.ndarray) -> np.ndarray:
    """Return the exact inverse of `level_to_grey`: uint8 grey values to uint8 levels 0..16."""
    return np.rint(np.asarray(greys, np.float64) * (NUM_LEVELS - 1) / 255).astype(np.uint8)


def heldout_mask(labels: np.ndarray, per_class: int = HELDOUT_PER_CLASS) -> np.ndarray:
    """Return which examples are held out: bool [N] for int labels [N].

    Of the n examples of a class, the one of rank r (0-based, in the given order) is held out when
    floor((r + 1) k / n) exceeds floor(r k / n), k = `per_class`: exactly k of them, evenly spread.

    Raises ValueError when a class has fewer than `per_class` examples.
    """
    labels = np.asarray(labels)
    held = np.zeros(labels.shape, bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        n = len(members)
        if n < per_class:
            raise ValueError(f"class {label} has {n} examples; {per_class} are to be held out")
        rank = np.arange(n)
        held[members] = (rank + 1) * per_class // n > rank * per_class // n
    return held


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder `digits`: {"image": uint8 [8, 8, 1], "label": 0..9}, splits train, heldout."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "50 held-out examples per class."}
    # There are no downloads, so there is no checksum file to look for next to this module. (The
    # look-up also needs importlib_resources, which TFDS uses without requiring it.)
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        # `dataset_info_from_configs` would look for metadata files next to this module.
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=IMAGE_SHAPE, encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        from sklearn.datasets import load_digits  # only needed to prepare, slow to import

        bunch = load_digits()
        images_NxHxW, labels_N = level_to_grey(bunch.images), bunch.target
        held_N = heldout_mask(labels_N)
        return {
            "train": self._generate_examples(images_NxHxW, labels_N, ~held_N),
            "heldout": self._generate_examples(images_NxHxW, labels_N, held_N),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, keep: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in np.flatnonzero(keep):
            # A PIL image is encoded by PIL; a numpy array would be encoded by TensorFlow.
            image = Image.fromarray(images[index])
            yield int(index), {"image": image, "label": int(labels[index])}


def builder(data_dir: str | os.PathLike[str]) -> Digits:
    """Return the builder under `data_dir`, writing and reading ArrayRecord. Touches no file."""
    return Digits(data_dir=os.fspath(data_dir), file_format="array_record")


def prepare(data_dir: str | os.PathLike[str]) -> tfds.core.DatasetInfo:
    """Write the data set under `data_dir/digits/1.0.0` unless it is there already.

    Progress bars go to stderr. TFDS writes into a temporary folder and renames it, so an
    interrupted call leaves nothing that looks complete.
    """
    digits = builder(data_dir)
    digits.download_and_prepare()
    return digits.info


def load_split(data_dir: str | os.PathLike[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a prepared split in its stored order: images uint8 [N, 8, 8, 1], labels int32 [N]."""
    source = open_source(SourceConfig("tfds", os.fspath(data_dir), "digits", split))
    examples = [Pixels(source, IMAGE_SHAPE, True)[index] for index in range(len(source))]
    images_NxHxWxC = np.stack([example["image"] for example in examples])
    return images_NxHxWxC, np.stack([example["label"] for example in examples])
