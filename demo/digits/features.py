"""Feature spaces in which sets of images are compared. Pure numpy, nothing to download.

A feature space is a row of `FEATURES`; its name belongs into every report, because Fréchet
distances of two feature spaces cannot be compared. In particular the Fréchet *digit* distance
(FDD) made from "digit-96" is not FID: FID uses an Inception network, FDD fixed filters.

Letters: N images, H height, W width, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lit_jax.config import unknown_name
from lit_jax.evaluation.scores import moments, moments_distance


@dataclass(frozen=True)
class FeatureSpace:
    """`extract` maps uint8 images [N, *image_shape] to float64 features [N, dimensions]."""

    image_shape: tuple[int, int, int]
    dimensions: int
    extract: Callable[[np.ndarray], np.ndarray]


def digit_features(images_NxHxWxC: np.ndarray) -> np.ndarray:
    """Return the feature space "digit-96": uint8 digits [N, 8, 8, 1] to float64 [N, 96] in [0, 1].

    - 64 pixels u / 255: where the ink is;
    - 16 pooled |horizontal differences| and 16 pooled |vertical differences|: how sharp strokes
      are and which way they run, within two pixels of tolerance. |x[i, j+1] - x[i, j]| (and the
      same along i) is taken with a background pixel beyond the last column (row) and averaged over
      2 x 2 cells into a 4 x 4 map, read row by row.

    Why differences: Gaussian noise with the mean and covariance of the real digits looks like no
    digit. On pixels alone its Fréchet distance to `train` is 3 times that of the held-out real
    digits, in the difference part 15 times; absolute values see beyond second moments.
    """
    pixels_NxHxW = images_NxHxWxC[..., 0].astype(np.float64) / 255.0
    right_NxHxW = np.abs(np.diff(pixels_NxHxW, axis=2, append=0.0))
    down_NxHxW = np.abs(np.diff(pixels_NxHxW, axis=1, append=0.0))
    parts = [pixels_NxHxW, _pool_2x2(right_NxHxW), _pool_2x2(down_NxHxW)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _pool_2x2(maps_NxHxW: np.ndarray) -> np.ndarray:
    n, height, width = maps_NxHxW.shape
    return maps_NxHxW.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


FEATURES: dict[str, FeatureSpace] = {
    "digit-96": FeatureSpace((8, 8, 1), 96, digit_features),
}


def extract(name: str, images: np.ndarray) -> np.ndarray:
    """Return features float64 [N, D] of uint8 images [N, H, W, C] in the space `name`.

    Raises ValueError for an unknown space, another image shape, or images that are not uint8 (the
    spaces are defined on stored pixels, so that every producer passes the same rounding).
    """
    if name not in FEATURES:
        raise unknown_name("feature space", name, FEATURES)
    space = FEATURES[name]
    if images.ndim != 4 or images.shape[1:] != space.image_shape:
        raise ValueError(
            f"images have shape {images.shape}; feature space {name} needs [N, H, W, C] with"
            f" [H, W, C] = {list(space.image_shape)}"
        )
    if images.dtype != np.uint8:
        raise ValueError(
            f"images are {images.dtype}, not uint8; convert samples in [-1, 1] with"
            " lit_jax.data.transforms.to_uint8"
        )
    return space.extract(images)


def digit_frechet_distance(images_a: np.ndarray, images_b: np.ndarray) -> float:
    """Return Fréchet digit distance (FDD): uint8 digits [N, 8, 8, 1] compared in the space
    "digit-96".

    Not FID, and not comparable with any FID: the features are pixels and pooled differences in
    [0, 1], not activations of Inception. Like every Fréchet distance of finite samples it is biased
    upwards, the more the smaller N is, so compare only numbers made with the same counts.
    """
    return moments_distance(
        moments(extract("digit-96", images_a)),
        moments(extract("digit-96", images_b)),
    )
