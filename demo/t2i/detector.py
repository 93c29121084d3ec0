"""Finds the shapes in a generated image by rules, and scores images as GenEval does.

A pixel of a scene lies on the line from the background to one colour; how far along is its share
of that colour. A connected group of such pixels is a thing: its colour is the one on whose line the
pixels lie best, its shape the one whose rendering, placed at the same centre, overlaps best. What
overlaps with no shape well enough is no thing. Nothing is learned.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from demo.t2i.prompts import TAGS
from demo.t2i.shapes import BACKGROUND, COLOURS, SHAPES, SIDE, coverage

MIN_SHARE = 0.4
"""Pixels with less of any colour are background."""

MIN_AREA = 20
"""Pixels; the smallest shape has 60."""

MIN_OVERLAP = 0.7
"""Intersection over union, counted in shares of pixels, below which a thing has no shape."""

MAX_RESIDUAL = 60.0
"""Root mean square distance from the line of a colour, in 8-bit levels, above which a thing has no
colour."""


@dataclass(frozen=True)
class Found:
    """A thing in an image: shape, colour, centre and sides in pixels, overlap with that shape."""

    shape: str
    colour: str
    x: float
    y: float
    width: int
    height: int
    overlap: float


def detect(image_HxWxC: np.ndarray) -> list[Found]:
    """The things in a uint8 [32, 32, 3] image, from the largest to the smallest."""
    if image_HxWxC.shape != (SIDE, SIDE, 3) or image_HxWxC.dtype != np.uint8:
        raise ValueError(
            f"image of shape {image_HxWxC.shape} and type {image_HxWxC.dtype}; the detector looks"
            f" at uint8 [{SIDE}, {SIDE}, 3]"
        )
    shares, residuals = _along_lines(image_HxWxC.astype(np.float32))
    best_HxW = residuals.argmin(axis=0)
    share_HxW = np.take_along_axis(shares, best_HxW[None], axis=0)[0]
    groups, count = ndimage.label(share_HxW >= MIN_SHARE)
    sizes = np.bincount(groups.ravel(), minlength=count + 1)[1:]
    found = []
    for group in 1 + np.argsort(-sizes, kind="stable"):
        if sizes[group - 1] >= MIN_AREA:
            found += _thing(groups == group, shares, residuals)
    return found


def _along_lines(image_HxWxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of each colour, in [0, 1], and squared distance from its line: float [colours, H, W]
    each."""
    background = np.asarray(BACKGROUND, np.float32)
    lines = np.asarray(list(COLOURS.values()), np.float32) - background
    offset_HxWxC = image_HxWxC - background
    shares = np.einsum("hwc,kc->khw", offset_HxWxC, lines) / (lines**2).sum(1)[:, None, None]
    shares = np.clip(shares, 0, 1)
    rest = offset_HxWxC[None] - shares[..., None] * lines[:, None, None]
    return shares, (rest**2).sum(axis=-1)


def _thing(inside_HxW: np.ndarray, shares: np.ndarray, residuals: np.ndarray) -> list[Found]:
    """The thing that a group of pixels is; an empty list if it is none."""
    distances = residuals[:, inside_HxW].mean(axis=1)
    number = int(distances.argmin())
    if distances[number] > MAX_RESIDUAL**2:
        return []
    # Its rim has smaller shares than the group begins with.
    region_HxW = ndimage.binary_dilation(inside_HxW)
    alpha_HxW = np.where(region_HxW, shares[number], 0)
    y, x = ndimage.center_of_mass(alpha_HxW)
    overlaps = {shape: _overlap(shape, alpha_HxW, x + 0.5, y + 0.5) for shape in SHAPES}
    shape = max(overlaps, key=overlaps.__getitem__)
    if overlaps[shape] < MIN_OVERLAP:
        return []
    colour = list(COLOURS)[number]
    height, width = (int(np.ptp(places)) + 1 for places in np.nonzero(inside_HxW))
    centre = float(x) + 0.5, float(y) + 0.5
    return [Found(shape, colour, *centre, width, height, overlaps[shape])]


def _overlap(shape: str, alpha_HxW: np.ndarray, x: float, y: float) -> float:
    """Intersection over union of shares with the shape whose centre of mass is (x, y)."""
    dx, dy = _centre_of_mass(shape)
    wanted_HxW = coverage(shape, x - dx, y - dy)
    union = float(np.maximum(alpha_HxW, wanted_HxW).sum())
    return float(np.minimum(alpha_HxW, wanted_HxW).sum()) / union


@functools.cache
def _centre_of_mass(shape: str) -> tuple[float, float]:
    """Return the offset of the centre of mass from the centre of the shape."""
    middle = SIDE / 2
    y, x = ndimage.center_of_mass(coverage(shape, middle, middle))
    return float(x) + 0.5 - middle, float(y) + 0.5 - middle


def is_correct(found: Sequence[Found], prompt: Mapping[str, Any]) -> bool:
    """Return whether an image shows the content of its prompt, by the rules of GenEval.

    For every entry of `include` the `count` surest things of its class are looked at: all of them
    must have its colour, and all must be placed as it says to all those of the entry it names. No
    entry of `exclude` may be there `count` times.
    """
    surest = sorted(found, key=lambda thing: -thing.overlap)
    matched: list[list[Found]] = []
    for wanted in prompt["include"]:
        things = [thing for thing in surest if thing.shape == wanted["class"]][: wanted["count"]]
        if len(things) < wanted["count"]:
            return False
        if "color" in wanted and any(thing.colour != wanted["color"] for thing in things):
            return False
        if "position" in wanted:
            where, place = wanted["position"]
            pairs = itertools.product(things, matched[place])
            if not all(is_placed(thing, where, other) for thing, other in pairs):
                return False
        matched.append(things)
    shapes = [thing.shape for thing in found]
    return "exclude" not in prompt or all(
        shapes.count(unwanted["class"]) < unwanted["count"] for unwanted in prompt["exclude"]
    )


def is_placed(thing: Found, where: str, other: Found) -> bool:
    """Return whether a thing is `where`, seen from the other one, as GenEval decides it.

    The distance of the centres along an axis counts beyond a tenth of both sides together; the
    direction of what is left must be within 60 degrees of the axis.
    """
    offset = np.array([thing.x - other.x, thing.y - other.y])
    slack = 0.1 * np.array([thing.width + other.width, thing.height + other.height])
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0)
    length = float(np.hypot(*beyond))
    if length < 1e-3:
        return False
    dx, dy = beyond / length
    return float({"left of": -dx, "right of": dx, "above": -dy, "below": dy}[where]) > 0.5


def score(folder: Path) -> dict[str, float]:
    """Share of correct images per tag, and `overall`, the unweighted mean of the tags.

    `folder` has GenEval's layout: 00000/metadata.jsonl with one prompt, 00000/samples/*.png.
    Raises ValueError when a tag has no image.
    """
    correct: dict[str, list[bool]] = {tag: [] for tag in TAGS}
    for metadata in sorted(folder.glob("[0-9]*/metadata.jsonl")):
        prompt = json.loads(metadata.read_text())
        for path in sorted((metadata.parent / "samples").glob("*.png")):
            image = np.asarray(Image.open(path).convert("RGB"))
            correct[prompt["tag"]].append(is_correct(detect(image), prompt))
    if missing := [tag for tag, values in correct.items() if not values]:
        raise ValueError(f"{folder} has no images for {', '.join(missing)}")
    shares = {tag: float(np.mean(values)) for tag, values in correct.items()}
    return {"overall": float(np.mean(list(shares.values())))} | shares
