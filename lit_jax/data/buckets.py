"""Sizes of images by their aspect ratio: the 40 buckets of PixArt.

Source: the table for 1024 x 1024 in Junsong Chen et al., "PixArt-Sigma" (2024), which other
resolutions scale; the one for 512 x 512 is exactly half of it.
"""

from __future__ import annotations

# Height / width -> (height, width) in pixels at resolution 1024, all multiples of 64. The ratios
# are rounded quotients; an image belongs to the nearest ratio.
TABLE: dict[float, tuple[int, int]] = {
    0.25: (512, 2048),
    0.26: (512, 1984),
    0.27: (512, 1920),
    0.28: (512, 1856),
    0.32: (576, 1792),
    0.33: (576, 1728),
    0.35: (576, 1664),
    0.4: (640, 1600),
    0.42: (640, 1536),
    0.48: (704, 1472),
    0.5: (704, 1408),
    0.52: (704, 1344),
    0.57: (768, 1344),
    0.6: (768, 1280),
    0.68: (832, 1216),
    0.72: (832, 1152),
    0.78: (896, 1152),
    0.82: (896, 1088),
    0.88: (960, 1088),
    0.94: (960, 1024),
    1.0: (1024, 1024),
    1.07: (1024, 960),
    1.13: (1088, 960),
    1.21: (1088, 896),
    1.29: (1152, 896),
    1.38: (1152, 832),
    1.46: (1216, 832),
    1.67: (1280, 768),
    1.75: (1344, 768),
    2.0: (1408, 704),
    2.09: (1472, 704),
    2.4: (1536, 640),
    2.5: (1600, 640),
    2.89: (1664, 576),
    3.0: (1728, 576),
    3.11: (1792, 576),
    3.62: (1856, 512),
    3.75: (1920, 512),
    3.88: (1984, 512),
    4.0: (2048, 512),
}
MAX_RATIO = 4.5
"""Limit on the ratio of the sides of an image, in either direction."""

_RESOLUTION, _UNIT = 1024, 64


def sizes(resolution: int, multiple: int = 1) -> tuple[tuple[int, int], ...]:
    """Return (height, width) in pixels of the 40 buckets at a resolution, in the order of the
    table.

    Raises ValueError when sides would not be multiples of `multiple` pixels: they are 8 to 32 units
    of resolution / 16.
    """
    parts = _RESOLUTION // _UNIT
    if resolution < 1 or resolution % (parts * multiple):
        below = resolution - resolution % (parts * multiple)
        near = " or ".join(str(n) for n in (below, below + parts * multiple) if n)
        raise ValueError(
            f"resolution {resolution} has no buckets with sides that are multiples of {multiple};"
            f" it must be a multiple of {parts * multiple}, as {near}"
        )
    unit = resolution // parts
    return tuple((h // _UNIT * unit, w // _UNIT * unit) for h, w in TABLE.values())


def nearest(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Return (height, width) of the bucket of an image: that with the nearest height / width.

    Raises ValueError for a ratio beyond MAX_RATIO, and for a resolution without buckets.
    """
    ratio = height / width
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        raise ValueError(
            f"height / width is {height} / {width} = {ratio:.3g}; it must be within 1 / {MAX_RATIO}"
            f" and {MAX_RATIO}"
        )
    distances = [abs(key - ratio) for key in TABLE]
    return sizes(resolution)[distances.index(min(distances))]
