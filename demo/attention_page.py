"""Which tokens a query hears, for every mixer, and what it costs: the computed parts of
docs/attention.md.

    python demo/attention_page.py docs

The modules themselves are asked, with random weights, on a grid of 16 x 16 tokens. A mixer is
linear in its values up to the output of its heads; so the values are set to 1 at one token and to 0
at all others, once for every token, and the mean magnitude of what arrives at a query is a pixel.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lit_jax.models import registry
from lit_jax.models.attention import make_mixer
from lit_jax.models.attention.compressed import SampledCompression
from lit_jax.models.attention.gated import (
    GatedAttention,
    gated_linear_attention,
)
from lit_jax.models.cost import multiplied_attention_macs
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.pixart.config import KVCompressConfig
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.registry import DenoiserConfig
from lit_jax.storage import files
from lit_jax.storage.png import save_figure

BEGIN, END = "<!-- from lit_jax.models.cost -->", "<!-- end -->"
SIDES = (256, 512, 1024, 2048)
"""Pixels of the images in the table of costs, eight times the latents."""

GRID = (16, 16)
QUERIES = {"centre": (8, 8), "corner": (0, 0)}
WIDTH, HEADS = 64, 4
FLOOR = 1e-4
"""Smaller influences have the colour of the end of the scale; none at all is white."""


def tokens(seed: int = 0) -> np.ndarray:
    """[1, N, D] of unit variance: half of it the position table, half noise."""
    table = sincos_position_table(GRID, WIDTH)
    table = (table - table.mean(axis=-1, keepdims=True)) / table.std()
    noise = np.random.default_rng(seed).normal(size=table.shape)
    return ((table + noise) / np.sqrt(2))[None].astype("f4")


def new_mixer(**fields: Any) -> Any:
    """A mixer with weights of unit scale, so that queries tell keys apart."""
    options = {"hidden_size": WIDTH, "num_heads": HEADS, "patch_size": 1, "input_size": GRID}
    return unit_scale(make_mixer(DiTConfig(**options | fields), nnx.Rngs(0)))


def unit_scale(mixer: Any) -> Any:
    for index, projection in enumerate((mixer.q, mixer.k)):
        draws = np.random.default_rng(index).normal(size=projection.kernel.shape)
        projection.kernel[...] = jnp.asarray(draws / np.sqrt(WIDTH), jnp.float32)
    return mixer


def influence(mixer: Any, x_1xNxD: np.ndarray, *rest: Any) -> np.ndarray:
    """[N, N]: mean magnitude at the heads of query i of a value 1 at token j alone."""
    N, D = x_1xNxD.shape[1:]
    # One image per token, and a last one without any value: what a bias of the convolution gives.
    mixer.v = lambda x: jnp.broadcast_to(jnp.eye(N + 1, N)[:, :, None], (N + 1, N, D))
    out_KxNxD = jax.jit(lambda x: mixer.heads(x, GRID, *rest))(jnp.repeat(x_1xNxD, N + 1, axis=0))
    return np.asarray(jnp.mean(jnp.abs(out_KxNxD[:-1] - out_KxNxD[-1]), axis=-1)).T


def of_mixer(*rest: Any, **fields: Any) -> Callable[[], np.ndarray]:
    return lambda: influence(new_mixer(**fields), tokens(), *rest)


def scan_orders() -> dict[str, np.ndarray]:
    """Layer of a DiG -> the tokens in the order in which it sees them, [N]."""
    rows = np.arange(GRID[0] * GRID[1])
    columns = rows.reshape(GRID).T.ravel()
    orders = (rows, rows[::-1], columns, columns[::-1])
    return {f"layer {i}": order for i, order in enumerate(orders)}


def gated_influence(order_N: np.ndarray) -> np.ndarray:
    """[N, N] of one layer of DiG, before the norm and the gate of its heads, which are not linear
    in the values."""
    options = {"hidden_size": WIDTH, "num_heads": HEADS, "patch_size": 1, "input_size": GRID}
    mixer = unit_scale(GatedAttention(DiGConfig(**options), rngs=nnx.Rngs(0)))
    x_1xNxD = tokens()[:, order_N]
    N = len(order_N)
    q, k, a = (f(x_1xNxD).reshape(1, N, HEADS, -1) for f in (mixer.q, mixer.k, mixer.log_decay))
    q, k, a = (jnp.repeat(array, N, axis=0) for array in (q, k, a))
    v_NxNxHx1 = jnp.broadcast_to(jnp.eye(N)[:, :, None, None], (N, N, HEADS, 1))
    out_NxNxHx1, _ = jax.jit(gated_linear_attention)(q, k, v_NxNxHx1, a)
    seen = np.asarray(jnp.mean(jnp.abs(out_NxNxHx1), axis=(2, 3))).T
    back = np.argsort(order_N)
    return seen[back][:, back]


PICTURES: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "softmax": ("softmax", of_mixer(mixer="softmax")),
    "compressed": (
        "softmax, KV compression\n(uniform, 2 x 2)",
        of_mixer(SampledCompression("uniform", 2), mixer="softmax"),
    ),
    "linear": ("LiT: ReLU linear\n+ 5 x 5 convolution", of_mixer(mixer="linear")),
    "focused": ("focused linear\n+ 5 x 5 convolution", of_mixer(mixer="focused")),
    "sana": (
        "SANA linear\n(heads of 32)",
        of_mixer(mixer="sana", num_heads=2, kernel_size=None, qkv_bias=False),
    ),
    "gated": ("DiG: gated linear,\none layer", lambda: gated_influence(scan_orders()["layer 0"])),
    "window": ("CLEAR, r = 5", of_mixer(mixer="window", window_size=5)),
    "pooled": (
        "CLEAR, r = 5,\npooled 4 x 4",
        of_mixer(mixer="window", window_size=5, down_factor=4),
    ),
}
"""File name -> (title, influence [N, N])."""


def show(axes: Any, influence_NxN: np.ndarray, query: tuple[int, int]) -> Any:
    """One map, the query marked."""
    row, column = query
    map_RxC = influence_NxN[row * GRID[1] + column].reshape(GRID)
    shown = np.ma.masked_equal(map_RxC, 0.0)
    image = axes.imshow(np.maximum(shown, FLOOR), norm=LogNorm(FLOOR, 1.0), cmap="viridis")
    mark = {"markersize": 6, "markerfacecolor": "none", "markeredgecolor": "#D55E00"}
    axes.plot(column, row, "s", clip_on=False, **mark)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def picture(path: Path, title: str, influence_NxN: np.ndarray) -> None:
    """The maps of the two queries of one mixer."""
    figure = Figure(figsize=(6.2, 3.0), dpi=90, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(QUERIES))
    for axes, (name, query) in zip(panels, QUERIES.items(), strict=True):
        image = show(axes, influence_NxN, query)
        axes.set_xlabel(f"query in the {name}", fontsize=9)
    figure.suptitle(title.replace("\n", " "), fontsize=11)
    figure.colorbar(image, ax=list(panels), shrink=0.8, label="influence of a token")
    save_figure(path, figure)


def side_by_side(path: Path, influences: Mapping[str, np.ndarray]) -> None:
    """Several maps, a row per query."""
    figure = Figure(
        figsize=(1.7 * len(influences) + 0.8, 3.9), dpi=90, facecolor="white", layout="constrained"
    )
    panels = figure.subplots(len(QUERIES), len(influences))
    for axes, title in zip(panels[0], influences, strict=True):
        axes.set_title(title, fontsize=9)
    for row, (where, query) in zip(panels, QUERIES.items(), strict=True):
        for axes, influence_NxN in zip(row, influences.values(), strict=True):
            image = show(axes, influence_NxN, query)
        row[0].set_ylabel(f"query in the {where}", fontsize=9)
    figure.colorbar(image, ax=panels, shrink=0.8, label="influence of a token")
    save_figure(path, figure)


def models() -> dict[str, DenoiserConfig]:
    """Row of the table of costs -> a network of the width of DiT-S/2."""
    compressed = KVCompressConfig("conv", scale_factor=2, kv_compress_layer=tuple(range(12)))
    shape = {"depth": 12, "hidden_size": 384, "num_heads": 6, "patch_size": 2}
    return {
        "softmax": registry.model_config("DiT-S/2"),
        "softmax, keys and values compressed 2 x 2": registry.model_config(
            "PixArt", **shape, kv_compress_config=compressed
        ),
        "linear (LiT), 2 heads": registry.model_config("LiT-S/2"),
        "focused, 2 heads": registry.model_config("LiT-S/2", mixer="focused"),
        "sana, 12 heads": registry.model_config(
            "LiT-S/2", mixer="sana", num_heads=12, kernel_size=None
        ),
        "gated (DiG)": registry.model_config("DiG-S/2"),
        "window (CLEAR), r = 8": registry.model_config("CLEAR-S/2"),
        "window, r = 8, pooled 4 x 4": registry.model_config("CLEAR-S/2", down_factor=4),
    }


def cost_lines() -> list[str]:
    """Thousands of MACs per token of one attention layer, from the closed forms."""
    lines = [
        "| mixer | " + " | ".join(f"{side} px" for side in SIDES) + " |",
        "|---|" + "---:|" * len(SIDES),
    ]
    for name, model in models().items():
        cells = []
        for side in SIDES:
            sized = dataclasses.replace(model, input_size=side // 8)
            macs = multiplied_attention_macs(sized)
            cells.append(f"{macs / sized.depth / sized.num_tokens / 1e3:,.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def into_page(text: str) -> str:
    """The page with the table of costs made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n\n" + "\n".join(cost_lines()) + "\n\n" + END + after


def main(docs: str) -> None:
    images = Path(docs, "images")
    influences = {}
    for name, (title, compute) in PICTURES.items():
        influences[title] = compute()
        picture(images / f"attention_{name}.png", title, influences[title])
        print(f"attention_{name}.png")
    side_by_side(images / "attention_overview.png", influences)
    layers = {name: gated_influence(order) for name, order in scan_orders().items()}
    side_by_side(images / "attention_gated.png", layers)
    page = Path(docs, "attention.md")
    files.write_text(page, into_page(page.read_text()))
    print("attention_overview.png, attention.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
