"""Loss curves of several runs as one PNG. No display needed, same bytes for the same numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lit_jax.storage import png as images

Curve = tuple[Sequence[float], Sequence[float]]

# Okabe and Ito (2008): told apart by colour-blind readers and in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# The y axis becomes logarithmic when the largest value exceeds the smallest by this factor.
_LOG_RATIO = 10.0


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return centred moving average of [N]; at the ends over the half of the window that exists, so
    that the last point is an average too and not a single noisy value."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    index = np.arange(len(values))
    first = np.maximum(index - window // 2, 0)
    last = np.minimum(index + window // 2 + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def loss_curves(
    path: str | os.PathLike[str],
    runs: Mapping[str, Curve],
    *,
    title: str = "training loss",
    ylabel: str = "loss",
) -> None:
    """Draw every run as a smoothed line over its faint recorded values.

    `runs` maps a name to (steps, values), in the order of the legend. The smoothing window is a
    twentieth of the run. The y axis is logarithmic when all values are positive and span more than
    a factor of ten. Raises ValueError for an empty, unequal or non-finite run.
    """
    if not runs:
        raise ValueError("loss curves need at least one run")
    curves = {name: _checked(name, *curve) for name, curve in runs.items()}
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 11}):
        figure = Figure(figsize=(8, 4), dpi=110, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for index, (name, (steps, values)) in enumerate(curves.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
            line = smooth(values, max(len(values) // 20, 1))
            axes.plot(steps, line, color=colour, linewidth=1.8, label=name)
        everything = np.concatenate([values for _, values in curves.values()])
        if everything.min() > 0 and everything.max() > _LOG_RATIO * everything.min():
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        axes.grid(True, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        images.save_figure(path, figure)


def _checked(
    name: str, steps: Sequence[float], values: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"run {name!r} has {x.shape} steps and {y.shape} values; they must match")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"run {name!r} contains NaN or infinite numbers")
    return x, y
