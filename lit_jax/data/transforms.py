"""Conversions of pixel values, and the augmentations of a training example.

Letters: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Example = Mapping[str, Any]


def to_float(images: np.ndarray) -> np.ndarray:
    """Return uint8 [..., H, W, C] to float32 in [-1, 1]: u / 127.5 - 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: Any) -> np.ndarray:
    """Return model output in [-1, 1], any shape, to uint8: truncate(clamp(127.5 x + 128, 0, 255)).

    The conversion of the official DiT `sample_ddp.py`, which truncates and does not round, so
    `to_uint8(to_float(u)) == u` for every u. Computed in float32 as the official code does.

    Raises ValueError when a value is NaN or infinite: a cast would hide it as some grey.
    """
    values = np.asarray(images, dtype=np.float32)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ValueError(
            f"{bad} of {values.size} pixel values are not finite; the sampler diverged"
            " (check the weights, the guidance scale and the compute dtype)"
        )
    return np.clip(np.float32(127.5) * values + np.float32(128.0), 0.0, 255.0).astype(np.uint8)


def selected(batch: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of a batch that are in `names`."""
    return {name: batch[name] for name in names}


def normalised(batch: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return `selected`, with uint8 "image" as float32 in [-1, 1]."""
    return {**selected(batch, names), "image": to_float(batch["image"])}


def flip_horizontally(example: Example, rng: np.random.Generator) -> dict[str, Any]:
    """Mirror left and right with probability 1/2. For natural images, never for digits."""
    image_HxWxC = example["image"]
    if rng.random() < 0.5:
        image_HxWxC = image_HxWxC[:, ::-1]
    return {**example, "image": image_HxWxC}
