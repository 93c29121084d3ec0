"""report.json, report.md and the pictures of the text-to-image demo.

A row belongs to one model; every row was made by the protocol that stands beside them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from demo.t2i.prompts import TAGS
from lit_jax.storage import files
from lit_jax.storage import png as images

COLUMNS = 3
"""Prompts beside one another in the picture."""


@dataclass(frozen=True)
class Row:
    """Measurements of one model: shares of correct images, and what it cost.

    `steps` and `train_seconds` are those of this model alone; `attention_macs` are the
    multiply-accumulates of all self-attention mixers in one forward pass of one image.
    """

    name: str
    overall: float
    single_object: float
    two_object: float
    counting: float
    colors: float
    position: float
    color_attr: float
    steps: int
    params: int
    attention_macs: int
    train_seconds: float


def write_report(out: Path, rows: Sequence[Row], protocol: Mapping[str, Any]) -> None:
    """Writes report.json and report.md into `out`, where samples.png and losses.png are."""
    content = {
        "title": TITLE,
        "rows": [dataclasses.asdict(row) for row in rows],
        "protocol": dict(protocol),
        "pictures": PICTURES,
    }
    files.write_text(out / "report.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    files.write_text(out / "report.md", to_markdown(rows, protocol))


TITLE = "lit_jax demo: a softmax PixArt becomes a linear one"
PICTURES = {"Images and their prompts": "samples.png", "Training loss": "losses.png"}


def to_markdown(rows: Sequence[Row], protocol: Mapping[str, Any]) -> str:
    """The report for people: table, how to read it, pictures, protocol."""
    lines = [f"# {TITLE}", "", *table(rows), ""]
    lines += [
        f"**How to read this.** Shares of {protocol['images']} generated images that show what"
        " their prompt asks for, by the categories and rules of GenEval, as a rule-based detector"
        " of coloured shapes sees them; `overall` is the unweighted mean of the six. The numbers"
        " are of this toy and cannot be compared with any GenEval score. On real renderings, and"
        " on those that went through the VAE, the detector makes no mistake. Training steps and"
        " time are those of each model alone, without its teacher. One seed is no spread: small"
        " gaps between rows can be chance.",
        "",
    ]
    for caption, path in PICTURES.items():
        lines += [f"![{caption}]({path})", "", f"*{caption}*", ""]
    lines += ["## Protocol", ""]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in protocol.items()]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table."""
    heads = ["model", "overall", *(tag.replace("_", " ") for tag in TAGS)]
    heads += ["training steps", "parameters", "attention MACs", "training time"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for row in rows:
        minutes, seconds = divmod(round(row.train_seconds), 60)
        cells = [f"`{row.name}`", *(f"{getattr(row, k):.1%}" for k in ("overall", *TAGS))]
        cells += [f"{row.steps:,}", f"{row.params:,}", f"{row.attention_macs:,}"]
        cells.append(f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw_samples(path: Path, samples: Mapping[str, Path], per_tag: int = 2, scale: int = 2) -> None:
    """One PNG: for some prompts of each tag the first image of every model, side by side, and the
    prompt written under them.

    `samples` maps a model to its folder in GenEval's layout; all have the same prompts.
    """
    blocks = _blocks(next(iter(samples.values())), per_tag)
    gap, line, head = 4, 22, 24
    side = 32 * scale
    width, height = len(samples) * (side + gap) + 2 * gap, side + line + gap
    rows = -(-len(blocks) // COLUMNS)
    total = (COLUMNS * width + gap, head + rows * height + gap)
    canvas = np.full((total[1], total[0], 3), 255, np.uint8)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure(figsize=(total[0] / 100, total[1] / 100), dpi=100, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for index, (name, prompt) in enumerate(blocks):
            left = gap + index % COLUMNS * width
            top = head + index // COLUMNS * height
            for place, (model, folder) in enumerate(samples.items()):
                x = left + place * (side + gap)
                canvas[top : top + side, x : x + side] = _first_image(folder / name, scale)
                if index < COLUMNS:
                    heading = model.removeprefix("lit_")
                    axes.text(x + side / 2, head - 6, heading, ha="center", fontweight="bold")
            middle = left + (width - 3 * gap) / 2
            axes.text(middle, top + side + 5, prompt, ha="center", va="top")
        # One canvas pixel per pixel of the figure: nothing is resampled.
        axes.imshow(canvas, interpolation="nearest", aspect="auto")
        images.save_figure(path, figure)


def _blocks(folder: Path, per_tag: int) -> list[tuple[str, str]]:
    """(name of the folder, prompt) of some prompts of every tag, evenly spread."""
    found: dict[str, list[tuple[str, str]]] = {tag: [] for tag in TAGS}
    for metadata in sorted(folder.glob("[0-9]*/metadata.jsonl")):
        prompt = json.loads(metadata.read_text())
        found[prompt["tag"]].append((metadata.parent.name, prompt["prompt"]))
    chosen = []
    for entries in found.values():
        step = max(len(entries) // per_tag, 1)
        chosen += entries[step // 2 :: step][:per_tag]
    return chosen


def _first_image(folder: Path, scale: int) -> np.ndarray:
    first = min((folder / "samples").glob("*.png"))
    image = np.asarray(Image.open(first).convert("RGB"))
    return image.repeat(scale, axis=0).repeat(scale, axis=1)
