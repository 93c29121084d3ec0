"""Bilinear resizing as two small matrix products, without antialiasing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bilinear_weights(out_size: int, in_size: int, half_pixel: bool) -> np.ndarray:
    """Rows of interpolation weights along one axis, float32 [out_size, in_size].

    Output pixel o reads the position o * in / out, the convention of TensorFlow 1 (corners
    aligned at the upper left), or with `half_pixel` (o + 1/2) * in / out - 1/2, that of PyTorch's
    `align_corners=False`. Positions outside of the image are moved to its border. Positions are
    kept as integer fractions, so that no rounding decides between two pixels.
    """
    outputs = np.arange(out_size)
    if half_pixel:
        numerator, denominator = (2 * outputs + 1) * in_size - out_size, 2 * out_size
    else:
        numerator, denominator = outputs * in_size, out_size
    numerator = np.clip(numerator, 0, (in_size - 1) * denominator)
    lower, remainder = np.divmod(numerator, denominator)
    fraction = remainder / denominator
    weights = np.zeros((out_size, in_size))
    weights[outputs, lower] = 1.0 - fraction
    # On the last pixel the fraction is 0 and the upper neighbour does not exist.
    np.add.at(weights, (outputs, np.minimum(lower + 1, in_size - 1)), fraction)
    return weights.astype(np.float32)


def resize_bilinear(
    images_BxHxWxC: jax.Array, size: tuple[int, int], half_pixel: bool
) -> jax.Array:
    """Images [B, H, W, C] as float32 [B, *size, C]; see `bilinear_weights`."""
    images = jnp.asarray(images_BxHxWxC, jnp.float32)
    rows = bilinear_weights(size[0], images.shape[1], half_pixel)
    columns = bilinear_weights(size[1], images.shape[2], half_pixel)
    # Grey levels up to 255 have to survive to float32 accuracy on every accelerator.
    precision = jax.lax.Precision.HIGHEST
    images = jnp.einsum("oh,bhwc->bowc", rows, images, precision=precision)
    return jnp.einsum("ow,bhwc->bhoc", columns, images, precision=precision)
