"""The pictures of `benchmarks/attention.py`, from the JSON files that are there.

    python benchmarks/attention_plots.py

Time and memory against resolution, modules above, networks below. Writes
`attention_<platform>.png` beside the JSON file and into docs/images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_jax.storage.png import save_figure

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PIXELS = 16  # per token and axis

# Okabe and Ito (2008): told apart by colour-blind readers and in print.
STYLES = {
    "softmax": ("#000000", "-"),
    "fused": ("#000000", "--"),
    "linear": ("#D55E00", "-"),
    "focused": ("#D55E00", "--"),
    "sana": ("#D55E00", ":"),
    "window r=8": ("#0072B2", "-"),
    "window r=16": ("#0072B2", "--"),
    "window r=8 + pool": ("#0072B2", ":"),
    "gated": ("#009E73", "-"),
}


def draw(axes: Axes, curves: dict[str, dict[int, float]], title: str, unit: str) -> None:
    for case, points in curves.items():
        colour, line = STYLES[case]
        axes.plot(
            list(points), list(points.values()), line, marker="o", ms=4, color=colour, label=case
        )
    ticks = sorted({side for points in curves.values() for side in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(side) for side in ticks], rotation=45)
    axes.set_title(title)
    axes.set_xlabel("image side, pixels")
    axes.set_ylabel(unit)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def curves_of(rows: list[dict[str, Any]], what: str, column: str) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["what"] == what:
            curves.setdefault(row["case"], {})[int(row["pixels"])] = row[column]
    return curves


def plot(path: Path) -> None:
    content = json.loads(path.read_text())
    rows, depth = content["rows"], content["blocks_of_networks"]
    times = curves_of(rows, "module", "ms")
    for case, by_side in content["milliseconds_by_side_in_tokens"].items():
        further = {int(s) * PIXELS: ms for s, ms in by_side.items()}
        times[case] = dict(sorted((further | times.get(case, {})).items()))
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(11, 8), dpi=110, facecolor="white", layout="constrained")
        panels = figure.subplots(2, 2)
        draw(panels[0, 0], times, "one module of S/2: time", "ms per call")
        memory = curves_of(rows, "module", "resident")
        draw(panels[0, 1], memory, "one module of S/2: memory", "MiB, peak during a call")
        title = f"S/2 with {depth} block{'s' if depth > 1 else ''}"
        draw(panels[1, 0], curves_of(rows, "network", "ms"), f"{title}: time", "ms per call")
        memory = curves_of(rows, "network", "resident")
        draw(panels[1, 1], memory, f"{title}: memory", "MiB, peak during a call")
        panels[0, 0].legend(frameon=False, fontsize=8)
        figure.suptitle(f"{content['device']}, {content['dtype']}, jax {content['jax']}")
        for folder in (path.parent, IMAGES):
            save_figure(folder / f"{path.stem}.png", figure)


if __name__ == "__main__":
    for result in sorted((Path(__file__).parent / "results").glob("attention_*.json")):
        plot(result)
