"""Bilinear resizing as two small matrix products, without antialiasing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bilinear_weights(out_size: int, in_size: int, half_pixel: bool) -> np.ndarray:
    """Return rows of interpolation weights along one axis, float32 [out_size, in_size].

    Output pixel o reads the position o * in / out, the convention of TensorFlow 1 (corners
    aligned at the upper left), or with `half_pixel` (o + 1/2) * in / out - 1/2, that of PyTorch's
    `align_corners=False`. Positions outside of the image are moved to its border. They are rounded
    to float32, the ratio in / out first, as both of these do: on images of many pixels that moves
    grey levels by up to 0.01, which later layers magnify.
    """
    outputs = np.arange(out_size)
    scale = np.float32(in_size) / np.float32(out_size)
    if half_pixel:
        # One rounding for product and difference, as a fused multiply-add has.
        positions = (np.float64(scale) * (outputs + 0.5) - 0.5).astype(np.float32)
        positions = np.maximum(positions, np.float32(0))
    else:
        positions = outputs.astype(np.float32) * scale
    lower = np.minimum(np.floor(positions).astype(int), in_size - 1)
    fraction = positions - lower.astype(np.float32)
    weights = np.zeros((out_size, in_size), np.float32)
    weights[outputs, lower] = 1 - fraction
    # Beyond the last pixel there is none to mix with.
    np.add.at(weights, (outputs, np.minimum(lower + 1, in_size - 1)), fraction)
    return weights


def resize_bilinear(
    images_BxHxWxC: jax.Array, size: tuple[int, int], half_pixel: bool
) -> jax.Array:
    """Return images [B, H, W, C] as float32 [B, *size, C]; see `bilinear_weights`."""
    images = jnp.asarray(images_BxHxWxC, jnp.float32)
    rows = bilinear_weights(size[0], images.shape[1], half_pixel)
    columns = bilinear_weights(size[1], images.shape[2], half_pixel)
    # Grey levels up to 255 have to survive to float32 accuracy on every accelerator.
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("oh,bhwc->bowc", rows, images, precision=precision)
    return jnp.einsum("ow,bhwc->bhoc", columns, images, precision=precision)
