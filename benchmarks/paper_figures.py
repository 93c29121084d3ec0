"""Figures of the papers that follow from closed forms: cost against heads, keys of a window.

    python benchmarks/paper_figures.py --out runs/paper_figures

Writes heads.png (LiT, Figures 5 and 9), keys.png (share of the keys that a query of CLEAR attends
to) and paper_figures.json with the numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
from matplotlib.figure import Figure

from lit_jax.commands.cost.figures import panels_of, resolution_axis
from lit_jax.models.attention.circle import attended_share, window_keys
from lit_jax.models.cost import attention_macs, multiplied_attention_macs
from lit_jax.models.registry import model_config
from lit_jax.models.transformer.sizes import BACKBONES
from lit_jax.storage import files
from lit_jax.storage.png import save_figure

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


def heads_figure(table: Mapping[str, Any]) -> Figure:
    """Return LiT paper, Figures 5 and 9."""
    figure, panels = panels_of(len(table), 14)
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
    figure, (axes,) = panels_of(1, 6)
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
    resolution_axis(axes, list(RESOLUTIONS))
    axes.set_ylabel("keys attended to, % of all")
    axes.set_title(f"CLEAR, with {TEXT_TOKENS} text tokens")
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/paper_figures", help="folder of the figures")
    out = Path(parser.parse_args().out)
    heads, keys = heads_table(), keys_table()
    files.write_json(out / "paper_figures.json", {"heads": heads, "window_keys": keys})
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 10}):
        save_figure(out / "heads.png", heads_figure(heads))
        save_figure(out / "keys.png", keys_figure(keys))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
