"""The plots of the cost job, and the numbers behind those that do not depend on its models."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_jax.models.attention.circle import attended_share, window_keys
from lit_jax.models.cost import attention_macs, multiplied_attention_macs
from lit_jax.models.registry import model_config
from lit_jax.models.transformer.sizes import BACKBONES
from lit_jax.storage.png import save_figure

# Okabe and Ito (2008): told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HEADS = (1, 2, 3, 4, 6, 8, 12, 16, 18, 24, 36, 48, 64, 96, 128, 192)

# CLEAR runs in FLUX: 16 pixels are a token, and 512 text tokens attend to everything.
RADII, TEXT_TOKENS, FLUX_PIXELS = (8, 16, 32), 512, 16
RESOLUTIONS = (512, 1024, 2048, 4096, 8192)


def heads_table() -> dict[str, Any]:
    """Return LiT paper, Figures 5 and 9: GMACs of all attention layers at 256 pixels against the
    number of heads, as Eq. 4 prints them and as Algorithm 1 multiplies; and of softmax attention.
    """
    table: dict[str, Any] = {}
    for size, (_, width, *_) in BACKBONES.items():
        configs = {
            heads: model_config(f"LiT-{size}/2", num_heads=heads)
            for heads in HEADS
            if width % heads == 0
        }
        table[size] = {
            "softmax": attention_macs(model_config(f"DiT-{size}/2")) / 1e9,
            "printed": {str(h): attention_macs(c) / 1e9 for h, c in configs.items()},
            "multiplied": {str(h): multiplied_attention_macs(c) / 1e9 for h, c in configs.items()},
        }
    return table


def keys_table() -> dict[str, Any]:
    """Return CLEAR's claim: the share of all keys, 512 text tokens included, that a query attends
    to, for circles of radius r and images of FLUX."""
    return {
        str(r): {
            "keys": window_keys(r),
            "share": {
                str(side): attended_share(r, (side // FLUX_PIXELS) ** 2, TEXT_TOKENS)
                for side in RESOLUTIONS
            },
        }
        for r in RADII
    }


def write_figures(out: Path, content: Mapping[str, Any]) -> None:
    """cost_macs.png, cost_memory.png where anything was compiled, cost_heads.png, cost_keys.png."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 10}):
        save_figure(out / "cost_macs.png", macs_figure(content["models"]))
        if any(row["compiled"] for rows in content["models"].values() for row in rows.values()):
            save_figure(out / "cost_memory.png", memory_figure(content["models"]))
        save_figure(out / "cost_heads.png", heads_figure(content["heads"]))
        save_figure(out / "cost_keys.png", keys_figure(content["window_keys"]))


def _figure(panels: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 4.2), dpi=110, facecolor="white", layout="constrained")
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for one in axes:
        one.grid(True, which="both", alpha=0.25, linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _resolution_axis(axes: Axes, sides: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.set_xlabel("image side, pixels")


def macs_figure(models: Mapping[str, Any]) -> Figure:
    """Return MACs of the core of the attention, and of the whole network, against resolution."""
    figure, (core, whole) = _figure(2, 11)
    for (text, rows), colour in zip(models.items(), itertools.cycle(COLOURS), strict=False):
        sides = [int(side) for side in rows]
        cores = [(r["macs"]["attention"] + r["macs"]["convolution"]) / 1e9 for r in rows.values()]
        core.plot(sides, cores, "o-", color=colour, label=text)
        whole.plot(sides, [r["forward_macs"] / 1e9 for r in rows.values()], "o-", color=colour)
    for axes, title in ((core, "attention and filters"), (whole, "whole network")):
        _resolution_axis(axes, sides)
        axes.set_title(f"{title}, one image")
        axes.set_ylabel("GMAC")
    core.legend(frameon=False)
    return figure


def memory_figure(models: Mapping[str, Any]) -> Figure:
    """Return memory of the compiled forward pass and training step, where they were compiled."""
    figure, panels = _figure(2, 11)
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
        _resolution_axis(axes, sorted(compiled))
    panels[0].legend(frameon=False)
    return figure


def heads_figure(table: Mapping[str, Any]) -> Figure:
    """Return LiT paper, Figures 5 and 9."""
    figure, panels = _figure(len(table), 14)
    for axes, (size, row) in zip(panels, table.items(), strict=True):
        for name, style in (("printed", "o-"), ("multiplied", "o--")):
            points = {int(heads): value for heads, value in row[name].items()}
            axes.plot(list(points), list(points.values()), style, label=f"linear, as {name}")
        axes.axhline(row["softmax"], color="black", linewidth=1, label="softmax")
        axes.set_xscale("log", base=2)
        ticks = [2**power for power in range(8)]
        axes.set_xticks(ticks, [str(heads) for heads in ticks])
        axes.set_title(f"{size}/2, 256 pixels")
        axes.set_xlabel("heads")
    panels[0].set_ylabel("GMAC of all attention layers")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def keys_figure(table: Mapping[str, Any]) -> Figure:
    """Return share of the keys that a query of CLEAR attends to."""
    figure, (axes,) = _figure(1, 6)
    for r, row in table.items():
        points = {int(side): 100 * share for side, share in row["share"].items()}
        axes.plot(list(points), list(points.values()), "o-", label=f"r = {r}: {row['keys']} keys")
        axes.annotate(
            f"{points[8192]:.2f}%",
            (8192, points[8192]),
            xytext=(-8, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    _resolution_axis(axes, list(RESOLUTIONS))
    axes.set_ylabel("keys attended to, % of all")
    axes.set_title(f"CLEAR, with {TEXT_TOKENS} text tokens")
    axes.legend(frameon=False)
    return figure
