"""Images as training examples in pixel space: cropped, labelled, mirrored.

Letters: N examples, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from PIL import Image

from lit_jax.data import transforms
from lit_jax.data.crop import center_crop
from lit_jax.data.examples import LABEL, Examples, SizeStream, seeds
from lit_jax.data.sources.image_source import BrokenImage, ImageSource

KEPT_IN_MEMORY = 64 * 2**20
"""Bytes of decoded images up to which a data set is decoded once, before the first step: reading a
small picture again costs more than the training step that uses it."""


@dataclass(frozen=True)
class Pixels:
    """Images of a source as {"image": uint8 [H, W, C], "label": int32 (with `labels`)}, by ADM's
    center crop, and grey for C = 1. May be pickled."""

    source: ImageSource
    image_shape: tuple[int, int, int]
    labels: bool

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an example. Raises ValueError with the name of an image that cannot be used."""
        try:
            image = center_crop(self.source.load(index), self.image_shape[0])
            label = self.source.label(index) if self.labels else None
        except BrokenImage as error:
            raise ValueError(
                f"image {self.source.name(index)} cannot be used: {error}; repair or remove it"
            ) from error
        if self.image_shape[2] == 1:
            image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
        labelled = {} if label is None else {"label": np.int32(label)}
        return {"image": image, **labelled}


def require_image_shape(source: ImageSource, shape: tuple[int, ...], title: str) -> None:
    """Raise ValueError when images of a source cannot be cropped to `shape` [H, W, C]."""
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise ValueError(
            f"the model takes images {shape}; training on pixels needs square images with 1 or 3"
            " channels: set model.overrides input_size and in_channels"
        )
    if source.image_shape is None:  # of many sizes, cropped one by one
        return
    *sides, stored_channels = source.image_shape
    if min(sides) < height or stored_channels != channels:
        raise ValueError(
            f"data set {title!r} has images {source.image_shape}, the model takes {shape};"
            " set model.overrides input_size and in_channels"
        )


def pixel_examples(
    source: ImageSource,
    image_shape: tuple[int, int, int] | None,
    title: str,
    seed: int,
    flip: bool,
    labels: bool,
) -> Examples:
    """Return the images of a source in the shape that a model takes, None for their own."""
    image_shape = image_shape or source.image_shape
    if image_shape is None:
        raise ValueError(f"the images of {title} have several sizes; give image_shape")
    require_image_shape(source, image_shape, title)
    labels = labels and bool(source.classes)
    examples: Pixels | list[Any] = Pixels(source, image_shape, labels)
    if len(examples) * int(np.prod(image_shape)) <= KEPT_IN_MEMORY:
        examples = [examples[index] for index in range(len(examples))]
    drawn = seeds(seed)
    dataset = grain.MapDataset.source(examples).shuffle(seed=drawn.order).repeat()
    if flip:
        dataset = dataset.random_map(transforms.flip_horizontally, seed=drawn.mirror)
    arrays = {"image": (image_shape, np.dtype(np.float32)), **(LABEL if labels else {})}
    identity = {"data listing sha256": source.listing_sha256()}
    return Examples([SizeStream(dataset, arrays)], transforms.normalised, identity)
