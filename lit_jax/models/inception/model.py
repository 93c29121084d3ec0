"""The network of the FID: Inception V3 of the TensorFlow graph of 2015-12-05.

B images, H height, W width. Everything that the metrics of the ADM evaluation suite read comes
from one pass.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lit_jax.models.inception.blocks import (
    BLOCKS,
    PRECISION,
    STEM,
    InceptionBlock,
    add_branch,
    run_branch,
)
from lit_jax.models.inception.config import PREPROCESSINGS, InceptionConfig
from lit_jax.models.inception.resize import resize_bilinear
from lit_jax.models.layers import Dense

INPUT_SIZE = (299, 299)

# Channels of the first branch of Mixed_6d that the sFID reads.
SPATIAL_BLOCK, SPATIAL_CHANNELS = "Mixed_6d", 7


class InceptionFeatures(NamedTuple):
    """Outputs that the metrics need, float32.

    pool3            [B, 2048]          FID, precision and recall, KID
    logits           [B, 1008]          the classifier, with bias
    logits_unbiased  [B, 1008]          without bias: the Inception Score of the ADM suite
    spatial          [B, 17, 17, 7]     sFID, once flattened
    """

    pool3: jax.Array
    logits: jax.Array
    logits_unbiased: jax.Array
    spatial: jax.Array


class FIDInception(nnx.Module):
    """The network: `model(images)`.

    images  [B, H, W, 3] of any size, RGB grey levels 0..255, uint8 or any other number type
    ->      InceptionFeatures

    Raises ValueError for another number of channels, and for numbers outside of 0..255 or floats
    that all lie in 0..1. Inside jit the numbers are not known and not checked. Batch norm uses its
    stored statistics, so that an image's features do not depend on the rest of its batch.
    """

    def __init__(self, config: InceptionConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        divisor, width = config.width_divisor, 3
        for branch in STEM:
            width = add_branch(self, branch, width, divisor, rngs)
        for name in BLOCKS:
            block = InceptionBlock(name, width, divisor, rngs=rngs)
            setattr(self, name, block)
            width = block.out_channels
        self.fc = Dense(width, config.num_logits, rngs=rngs)

    def __call__(self, images_BxHxWx3: jax.Array) -> InceptionFeatures:
        return self.features(self.preprocess(images_BxHxWx3))[0]

    def preprocess(self, images_BxHxWx3: jax.Array) -> jax.Array:
        """Return images as the layers take them, float32 [B, 299, 299, 3], white close to 1."""
        _check_images(images_BxHxWx3)
        row = PREPROCESSINGS[self.config.preprocessing]
        resized = resize_bilinear(images_BxHxWx3, INPUT_SIZE, row.half_pixel)
        return (resized - row.centre) / row.scale

    def features(self, x_Bx299x299x3: jax.Array) -> tuple[InceptionFeatures, dict[str, jax.Array]]:
        """Return the features of preprocessed images, and for diagnosis the means over pixels [B,
        channels] after both pools of the stem ("pool_1", "pool_2") and after every block
        ("Mixed_5b" to "Mixed_7c")."""
        x = x_Bx299x299x3
        means: dict[str, jax.Array] = {}
        for number, branch in enumerate(STEM, start=1):
            x = run_branch(self, branch, x)
            means[f"pool_{number}"] = jnp.mean(x, axis=(1, 2))
        for name in BLOCKS:
            branches = getattr(self, name).branches(x)
            if name == SPATIAL_BLOCK:
                spatial = branches[0][..., :SPATIAL_CHANNELS]
            x = jnp.concatenate(branches, axis=-1)
            means[name] = jnp.mean(x, axis=(1, 2))
        pool3, bias = means["Mixed_7c"], self.fc.bias
        assert bias is not None  # `Dense` has one unless told otherwise
        unbiased = jnp.matmul(pool3, self.fc.kernel[...], precision=PRECISION)
        return InceptionFeatures(pool3, unbiased + bias[...], unbiased, spatial), means


def _check_images(images_BxHxWx3: jax.Array) -> None:
    shape = jnp.shape(images_BxHxWx3)
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape[1:3]:
        raise ValueError(
            f"images of shape {shape}; Inception takes RGB images [batch, height, width, 3]: move"
            " channels last, and repeat the one channel of grey images"
        )
    if images_BxHxWx3.dtype == np.uint8 or isinstance(images_BxHxWx3, jax.core.Tracer):
        return
    values = np.asarray(images_BxHxWx3, np.float32)
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    inside = low >= 0 and high <= 255  # false for NaN
    unit = np.issubdtype(images_BxHxWx3.dtype, np.inexact) and 0 < high <= 1
    if not inside or unit:
        raise ValueError(
            f"images with values from {low:g} to {high:g}; Inception takes grey levels 0..255:"
            " convert them to uint8, as for a file of images"
        )
