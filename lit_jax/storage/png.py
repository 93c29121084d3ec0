"""Pictures of samples: grids, and grids of several models side by side. No display needed.

Letters: N images, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lit_jax.storage import files

_BACKGROUND = 255  # grey value of the gaps between tiles
_VISIBLE_HEIGHT = 32  # pixels; the height that tiny images are enlarged to


def grid_of(
    images_NxHxWxC: np.ndarray, columns: int, *, scale: int | None = None, gap: int = 1
) -> np.ndarray:
    """Return tiles uint8 images [N, H, W, C] row by row into one uint8 image [h, w, C].

    Every pixel becomes `scale` x `scale` pixels (nearest neighbour); None enlarges images below 32
    pixels to about that height. Tiles are separated and framed by `gap` white pixels. Places of the
    last row that have no image stay white.
    """
    if images_NxHxWxC.ndim != 4 or images_NxHxWxC.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have shape {images_NxHxWxC.shape}; a grid needs [N, H, W, C] with C 1 or 3"
        )
    if images_NxHxWxC.dtype != np.uint8:
        raise ValueError(f"images are {images_NxHxWxC.dtype}; a grid needs uint8")
    n, height, width, channels = images_NxHxWxC.shape
    scale = max(_VISIBLE_HEIGHT // height, 1) if scale is None else scale
    if columns < 1 or scale < 1 or gap < 0:
        raise ValueError(f"columns {columns}, scale {scale} and gap {gap}: at least 1, 1 and 0")
    rows = -(-n // columns)
    step_y, step_x = height * scale + gap, width * scale + gap
    canvas = np.full((rows * step_y + gap, columns * step_x + gap, channels), _BACKGROUND, np.uint8)
    for index, image_HxWxC in enumerate(images_NxHxWxC):
        y, x = gap + index // columns * step_y, gap + index % columns * step_x
        tile_HxWxC = image_HxWxC.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[y : y + height * scale, x : x + width * scale] = tile_HxWxC
    return canvas


def class_rows(
    images_NxHxWxC: np.ndarray, labels_N: np.ndarray, per_class: int, num_classes: int
) -> np.ndarray:
    """Return the first `per_class` images of every class, class by class: one class per row of a
    grid with `per_class` columns. Raises ValueError, naming the class, when there are too few."""
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(np.asarray(labels_N) == label)[:per_class]
        if len(members) < per_class:
            raise ValueError(
                f"class {label} has {len(members)} images; a row of {per_class} was asked for"
            )
        chosen.append(members)
    return images_NxHxWxC[np.concatenate(chosen)]


def write_png(path: str | os.PathLike[str], image_HxWxC: np.ndarray) -> None:
    """Write one uint8 image [H, W, 1 or 3] as PNG, atomically; folders are created."""
    array = image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC
    with files.atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def save_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure as PNG, atomically and without a date or version in the file."""
    FigureCanvasAgg(figure)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def comparison_figure(
    path: str | os.PathLike[str],
    panels: Mapping[str, np.ndarray],
    *,
    columns: int,
    scale: int = 3,
    title: str = "",
    captions: Mapping[str, str] | None = None,
) -> None:
    """Several sets of images side by side as one PNG, each a grid under its own heading.

    `panels` maps a heading ("real", "teacher", ...) to uint8 images [N, H, W, C], in the order of
    display; every set has the same shape, so that equal places are comparable (`class_rows`).
    `captions` maps headings to a line below the grid, for example the measured distance.
    """
    if not panels:
        raise ValueError("a comparison needs at least one set of images")
    shapes = {heading: images.shape for heading, images in panels.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"sets of images differ in shape: {shapes}; choose equal numbers of each")
    captions = captions or {}
    stray = set(captions) - set(panels)
    if stray:
        raise ValueError(f"captions for {sorted(stray)}, which are no panels ({list(panels)})")
    grids = {
        name: grid_of(images, columns, scale=scale, gap=scale) for name, images in panels.items()
    }
    height, width, _ = next(iter(grids.values())).shape
    dpi = 100
    top, bottom, side = (62 if title else 32), (26 if captions else 8), 14
    total = (len(grids) * (width + side) + side, height + top + bottom)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 10}):
        figure = Figure(figsize=(total[0] / dpi, total[1] / dpi), dpi=dpi, facecolor="white")
        for index, (heading, grid_HxWxC) in enumerate(grids.items()):
            left = side + index * (width + side)
            box = (left / total[0], bottom / total[1], width / total[0], height / total[1])
            axes = figure.add_axes(box)
            axes.set_axis_off()
            # One canvas pixel per grid pixel: nothing is resampled.
            shown = grid_HxWxC[..., 0] if grid_HxWxC.shape[-1] == 1 else grid_HxWxC
            axes.imshow(
                shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
            )
            centre = (left + width / 2) / total[0]
            y = (bottom + height + 8) / total[1]
            figure.text(centre, y, heading, ha="center", va="bottom", fontweight="bold")
            if heading in captions:
                y = (bottom - 6) / total[1]
                figure.text(centre, y, captions[heading], ha="center", va="top", fontsize=8)
        if title:
            figure.text(0.5, 1 - 8 / total[1], title, ha="center", va="top", fontsize=12)
        save_figure(path, figure)
