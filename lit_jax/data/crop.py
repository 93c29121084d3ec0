"""Crops of images to the size of the training data.

`center_crop` is the crop of the ADM and DiT training data: Prafulla Dhariwal and Alex Nichol,
"Diffusion Models Beat GANs on Image Synthesis" (2021); DiT uses it unchanged. FID reference
statistics were computed on images cropped this way, so every step is reproduced bit for bit: the
filters, their order, Python's rounding to even, the integer offsets.

`fill_crop` is the crop of PixArt's training data, for any height and width.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from lit_jax.data.sources.image_source import BrokenImage

# Limit on the pixels of the enlarged image before the crop. A strip of 30000 x 2 pixels would need
# gigabytes.
MAX_PIXELS = 200_000_000


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """Return the central square of an RGB image: uint8 [size, size, 3].

    1. While the shorter side is at least 2 `size`: both sides are halved (floor) with a box filter.
    2. Bicubic resampling to sides round(side * size / shorter side).
    3. The central `size` x `size` pixels, offsets rounded down.

    Raises ValueError for another mode than RGB, and BrokenImage (a ValueError) for a strip so
    narrow that step 2 would need more than MAX_PIXELS.
    """
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode}; convert it to RGB first")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise BrokenImage(
            f"{image.width} x {image.height} pixels are too narrow for {size} x {size}: the"
            f" enlarged image would have {width} x {height}"
        )
    # Cut in numpy: PIL would resample a box of the image with other rounding.
    image_HxWx3 = np.asarray(image.resize((width, height), resample=Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return image_HxWx3[top : top + size, left : left + size]


def fill_crop(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Return the centre of an RGB image that just fills `height` x `width`: uint8 [height, width,
    3].

    Bicubic resampling until the tighter side matches (the other one rounded down), then the central
    pixels. Raises ValueError for another mode than RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode}; convert it to RGB first")
    if height * image.width >= width * image.height:
        size = image.width * height // image.height, height
    else:
        size = width, image.height * width // image.width
    image_HxWx3 = np.asarray(image.resize(size, resample=Image.Resampling.BICUBIC))
    top, left = round((size[1] - height) / 2), round((size[0] - width) / 2)
    return image_HxWx3[top : top + height, left : left + width]
