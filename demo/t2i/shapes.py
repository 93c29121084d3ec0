"""Procedural images of coloured shapes and their captions: the data of the text-to-image demo.

An image is 32 x 32 RGB on a constant light background. A scene is one thing in the middle, or two
things of different shapes, or two to four equal things in cells of 16 x 16. Everything is a
function of (seed, index of the image), so that a folder is the same wherever it is rendered.

Every image has two captions. The long one tells all: number, colour and, for two things in one row
or column, where they are. The short one leaves some of that open, as people do.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lit_jax.storage.staging import staged_folder

SIDE = 32
PLACES = ((8, 8), (24, 8), (8, 24), (24, 24), (16, 16))
"""Middles (x, y) of the four cells, row by row, and of the image."""

MIDDLE = 4
"""Number of the last place."""

JITTER = 1.0
"""Centres are up to this many pixels away from their place, along each axis."""

BACKGROUND = (235, 235, 235)
COLOURS = {
    "red": (220, 35, 35),
    "green": (35, 150, 55),
    "blue": (35, 85, 225),
    "yellow": (245, 205, 25),
    "purple": (165, 45, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
NUMBERS = ("one", "two", "three", "four")
"""Words for 1, 2, 3, 4."""

RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Position of a thing, seen from another one -> the same, seen from the first."""

_STEPS = 4  # samples per pixel and axis
_KINDS = {"one": 0.2, "two": 0.5, "many": 0.3}


@dataclass(frozen=True)
class Thing:
    """A shape with its centre in pixels: x to the right, y down."""

    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Example:
    """A scene and what is said about it."""

    things: tuple[Thing, ...]
    long: str
    short: str


def coverage(shape: str, x: float, y: float, side: int = SIDE) -> np.ndarray:
    """Share of each pixel that lies inside the shape around (x, y): float32 [side, side]."""
    samples = (np.arange(side * _STEPS, dtype=np.float32) + 0.5) / _STEPS
    dx, dy = samples[None, :] - x, samples[:, None] - y
    if shape == "circle":
        inside = dx**2 + dy**2 <= 5.5**2
    elif shape == "square":
        inside = np.maximum(abs(dx), abs(dy)) <= 4.75
    elif shape == "triangle":  # 12 wide, 11 high, its tip at the top
        inside = (abs(dy) <= 5.5) & (abs(dx) <= (dy + 5.5) * 6 / 11)
    else:  # two bars of 11 x 4
        inside = np.maximum(abs(dx), abs(dy)) <= 5.5
        inside &= np.minimum(abs(dx), abs(dy)) <= 2
    parts = inside.reshape(side, _STEPS, side, _STEPS)
    return parts.mean(axis=(1, 3), dtype=np.float32)


def render(things: tuple[Thing, ...]) -> np.ndarray:
    """The image of a scene: uint8 [32, 32, 3]."""
    image_HxWxC = np.full((SIDE, SIDE, 3), BACKGROUND, np.float32)
    for thing in things:
        alpha = coverage(thing.shape, thing.x, thing.y)[..., None]
        colour = np.asarray(COLOURS[thing.colour], np.float32)
        image_HxWxC = (1 - alpha) * image_HxWxC + alpha * colour
    return np.round(image_HxWxC).astype(np.uint8)


def example(seed: int, index: int) -> Example:
    """Image number `index` of the data set `seed`."""
    rng = np.random.default_rng([seed, index])
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
    if kind == "two":
        return _two(rng)
    shape, colour = _pick(rng, SHAPES), _pick(rng, COLOURS)
    count = 1 if kind == "one" else int(rng.integers(2, 5))
    places = [MIDDLE] if count == 1 else rng.choice(4, size=count, replace=False).tolist()
    things = tuple(_thing(rng, shape, colour, place) for place in places)
    if count == 1:
        long, brief = (f"{_article(rng)} {colour} {shape}", f"{_article(rng)} {shape}")
        short = brief if rng.random() < 0.5 else long
    else:
        long = f"{NUMBERS[count - 1]} {colour} {plural(shape)}"
        short = f"{NUMBERS[count - 1]} {plural(shape)}"
    return Example(things, _long(rng, long), _short(rng, short))


def _two(rng: np.random.Generator) -> Example:
    """Two things of different shapes; a third each in one row, in one column, diagonal."""
    shapes = [str(s) for s in rng.choice(SHAPES, size=2, replace=False)]
    colours = [_pick(rng, COLOURS) for _ in range(2)]
    first = int(rng.integers(4))
    second = first ^ int(rng.integers(1, 4))
    cells = (first, second)
    things = tuple(_thing(rng, *t) for t in zip(shapes, colours, cells, strict=True))
    bare = [f"a {shape}" for shape in shapes]
    full = [f"a {colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    where = relation(first, second)
    long = f"{full[0]} {_where(rng, where) if where else 'and'} {full[1]}"
    ways = [f"{bare[0]} and {bare[1]}", f"{full[0]} and {full[1]}"]
    if where:
        ways.append(f"{bare[0]} {_where(rng, where)} {bare[1]}")
    return Example(things, _long(rng, long), _short(rng, _pick(rng, ways)))


def relation(first: int, second: int) -> str | None:
    """Where cell `first` is, seen from cell `second`; None on a diagonal. Cells count by rows."""
    return {
        (0, 1): "left of",
        (2, 3): "left of",
        (1, 0): "right of",
        (3, 2): "right of",
        (0, 2): "above",
        (1, 3): "above",
        (2, 0): "below",
        (3, 1): "below",
    }.get((first, second))


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _thing(rng: np.random.Generator, shape: str, colour: str, place: int) -> Thing:
    dx, dy = rng.uniform(-JITTER, JITTER, 2)
    x, y = PLACES[place]
    return Thing(shape, colour, round(x + float(dx), 3), round(y + float(dy), 3))


def _pick(rng: np.random.Generator, choices: object) -> str:
    return str(rng.choice(list(choices)))  # type: ignore[call-overload]


def _article(rng: np.random.Generator) -> str:
    return _pick(rng, ("a", "a", "one"))


def _where(rng: np.random.Generator, where: str) -> str:
    """Some of the ways to say it."""
    ways = {
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    }
    return _pick(rng, ways[where])


def _long(rng: np.random.Generator, text: str) -> str:
    frames = ("a picture of {}", "an image of {} on a light background", "here you see {}", "{}")
    return _pick(rng, frames).format(text)


def _short(rng: np.random.Generator, text: str) -> str:
    return _pick(rng, ("{}", "a photo of {}")).format(text)


def write_folder(folder: Path, count: int, seed: int) -> None:
    """Writes NAME.png, NAME.long.txt and NAME.short.txt of images 0 ... count - 1; the folder
    appears when it is complete, and one with so many images is left alone.

    Raises ValueError for a count below 1, or a folder that holds anything else.
    """
    if count < 1:
        raise ValueError(f"{count} images; give at least 1")
    if folder.exists():
        if (present := len(list(folder.glob("*.png")))) != count:
            raise ValueError(f"{folder} holds {present} images, not {count}; choose another folder")
        return
    with staged_folder(folder, overwrite=False) as staged:
        for index in range(count):
            item = example(seed, index)
            stem = staged / f"{index:06d}"
            stem.with_suffix(".long.txt").write_text(item.long + "\n")
            stem.with_suffix(".short.txt").write_text(item.short + "\n")
            Image.fromarray(render(item.things)).save(stem.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the images and captions go")
    parser.add_argument("--count", type=int, default=10_000, help="number of images")
    parser.add_argument("--seed", type=int, default=0, help="another data set")
    args = parser.parse_args()
    try:
        write_folder(args.folder, args.count, args.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.count} images with two captions each in {args.folder}")


if __name__ == "__main__":
    main()
