"""Plots of a cost job."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_jax.storage.png import save_figure

# Okabe and Ito (2008): told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def write_figures(out: Path, content: Mapping[str, Any]) -> None:
    """Write cost_macs.png, and cost_memory.png where anything was compiled."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 10}):
        save_figure(out / "cost_macs.png", macs_figure(content["models"]))
        if any(row["compiled"] for rows in content["models"].values() for row in rows.values()):
            save_figure(out / "cost_memory.png", memory_figure(content["models"]))


def panels_of(panels: int, width: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` inches with this number of panels in a row."""
    figure = Figure(figsize=(width, 4.2), dpi=110, facecolor="white", layout="constrained")
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for one in axes:
        one.grid(True, which="both", alpha=0.25, linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def resolution_axis(axes: Axes, sides: list[int]) -> None:
    """Set up logarithmic axes over the sides of images."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.set_xlabel("image side, pixels")


def macs_figure(models: Mapping[str, Any]) -> Figure:
    """Return MACs of the core of the attention, and of the whole network, against resolution."""
    figure, (core, whole) = panels_of(2, 11)
    for (text, rows), colour in zip(models.items(), itertools.cycle(COLOURS), strict=False):
        sides = [int(side) for side in rows]
        # Zero products have no place on a logarithmic axis.
        sums = [r["macs"]["attention"] + r["macs"]["convolution"] for r in rows.values()]
        cores = [total / 1e9 if total else float("nan") for total in sums]
        core.plot(sides, cores, "o-", color=colour, label=text)
        whole.plot(sides, [r["forward_macs"] / 1e9 for r in rows.values()], "o-", color=colour)
    for axes, title in ((core, "attention and filters"), (whole, "whole network")):
        resolution_axis(axes, sides)
        axes.set_title(f"{title}, one image")
        axes.set_ylabel("GMAC")
    core.legend(frameon=False)
    return figure


def memory_figure(models: Mapping[str, Any]) -> Figure:
    """Return memory of the compiled forward pass and training step, where they were compiled."""
    figure, panels = panels_of(2, 11)
    compiled: set[int] = set()
    for axes, program in zip(panels, ("forward", "train"), strict=True):
        for (text, rows), colour in zip(models.items(), itertools.cycle(COLOURS), strict=False):
            found = {int(s): r["compiled"].get(program) for s, r in rows.items()}
            points = {side: one["peak"] / 2**30 for side, one in found.items() if one is not None}
            compiled |= points.keys()
            axes.plot(list(points), list(points.values()), "o-", color=colour, label=text)
        axes.set_title("forward pass" if program == "forward" else "training step")
        axes.set_ylabel("GiB of the compiled program")
    for axes in panels:
        resolution_axis(axes, sorted(compiled))
    panels[0].legend(frameon=False)
    return figure
