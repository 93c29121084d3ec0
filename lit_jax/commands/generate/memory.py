"""Memory that generating an image needs, reported before anything is loaded.

Parameters are counted; activations are estimates, from the largest arrays that are alive together.
The three networks are in memory one after another.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lit_jax.commands.generate.checks import Plan
from lit_jax.models import functional
from lit_jax.models.attention.tiling import Tiling
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.autoencoder.model import TILE
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.t5.config import T5Config
from lit_jax.runs.hosts import Log
from lit_jax.runs.progress import duration

MEMINFO = Path("/proc/meminfo")
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass(frozen=True)
class Part:
    """One network in memory: its parameters, how they are held, and the estimate for the rest."""

    name: str
    count: int
    held_in: str
    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def parts(plan: Plan, batch: int) -> tuple[Part, ...]:
    """Return the three networks, in the order in which they are loaded; `batch` images per
    device."""
    denoised = (2 if plan.guides else 1) * batch
    text_dtype = plan.dtype if plan.text.weights == "float" else "float32"
    return (
        _part(plan.text, text_dtype, text_activations(plan.text, plan.max_length)),
        _part(plan.model, plan.dtype, denoiser_activations(plan.model, plan.latent_size, denoised)),
        _part(
            plan.vae, "float32", decoder_activations(plan.vae, plan.latent_size, plan.config.tile)
        ),
    )


def _part(config: Any, dtype: str, activations: int) -> Part:
    """Return one network; floating-point parameters are held in `dtype`, integers stay as they
    are."""
    leaves = jax.tree.leaves(functional.abstract_params(config))
    integers = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if _is_integer(leaf))
    floats = sum(leaf.size for leaf in leaves if not _is_integer(leaf))
    weights = integers + floats * jnp.dtype(dtype).itemsize
    held_in = "int8" if integers > floats else dtype
    return Part(config.family, sum(leaf.size for leaf in leaves), held_in, weights, activations)


def _is_integer(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.integer))


def text_activations(config: T5Config, length: int) -> int:
    """Return the bytes for one text: the residual stream with queries, keys and values, the two
    halves of the gated MLP with their product, logits and weights of the attention; and, one layer
    at a time, the kernels in float32."""
    D, F, inner = config.d_model, config.d_ff, config.inner_width
    stream = length * (3 * D + 3 * inner + 3 * F)
    attention = 2 * config.num_heads * length * length
    layer = 4 * D * inner + 3 * D * F
    return 4 * (stream + attention + layer)


def denoiser_activations(config: PixArtConfig, latent: tuple[int, int], batch: int) -> int:
    """Return the bytes for one block on `batch` images: the residual stream with what the attention
    reads and makes, the hidden layer of the MLP, and the N x N logits and weights of softmax
    attention, which accelerators do not hold; or the strips of keys and the logits of windows. In
    bfloat16 the CPU backend also keeps all kernels as float32."""
    on_cpu = jax.default_backend() == "cpu"
    tokens = latent[0] * latent[1] // config.patch_size**2
    width = 8 * config.hidden_size + 2 * config.mlp_width
    numbers = tokens * width
    if config.mixer == "softmax" and on_cpu:
        numbers += 2 * config.num_heads * tokens * tokens
    if config.mixer == "window":
        grid = (latent[0] // config.patch_size, latent[1] // config.patch_size)
        tiling = Tiling.of(grid, config.window_size)
        pooled = 0 if config.down_factor is None else tokens // config.down_factor**2
        numbers += 2 * config.hidden_size * tiling.S * tiling.Y * grid[1]
        seen = tiling.Y * tiling.X + pooled
        numbers += 2 * config.num_heads * tiling.S * tiling.t * tiling.u * seen
    copy = (
        functional.count_params(functional.abstract_params(config))
        if config.dtype != "float32"
        else 0
    )
    return 4 * (batch * numbers + on_cpu * copy)


def decoder_activations(config: AutoencoderConfig, latent: tuple[int, int], tiled: bool) -> int:
    """Return the bytes for one image: 3.5 arrays of the second widest level at full resolution
    (what XLA plans for the released network), or those of a tile and the middle block."""
    widths = config.block_out_channels
    per_pixel = 3.5 * 4 * widths[min(1, len(widths) - 1)]
    pixels = latent[0] * latent[1] * config.downsampling**2
    if not tiled:
        return int(per_pixel * pixels)
    tile = min(latent[0], TILE) * min(latent[1], TILE) * config.downsampling**2
    middle = 13 * 4 * widths[-1] * latent[0] * latent[1]
    return int(per_pixel * tile + middle + 4 * 2 * config.out_channels * pixels)


def report(plan: Plan, batch: int, log: Log) -> None:
    """Log the required and the free memory.

    Raises ValueError when the parameters alone do not fit into the memory; warns when they might
    not together with what is computed from them.
    """
    rows = parts(plan, batch)
    log("in memory, one after another (activations are estimates):")
    for part in rows:
        log(
            f"  {part.name:14}{part.count:>14,} parameters  {part.held_in:9}"
            f"{gigabytes(part.weights):>8} + {gigabytes(part.activations)}"
        )
    free, of_what = free_memory()
    most = max(rows, key=lambda part: part.total)
    if free is None:
        log(f"  at most {gigabytes(most.total)} at a time")
        return
    log(f"  at most {gigabytes(most.total)} at a time; {of_what}: {gigabytes(free)} free")
    remedy = _remedy(plan, most)
    heaviest = max(rows, key=lambda part: part.weights)
    if heaviest.weights > free:
        raise ValueError(
            f"the {heaviest.name} needs {gigabytes(heaviest.weights)} for its parameters,"
            f" {gigabytes(free)} of {of_what} are free; {_remedy(plan, heaviest)}"
        )
    if most.total > free:
        log(f"warning: this may not fit into the {of_what}; {remedy}")


def _remedy(plan: Plan, part: Part) -> str:
    if part.name == plan.text.family:
        return "convert the text encoder with tools/quantize_t5.py, or close other programs"
    if part.name == plan.vae.family and not plan.config.tile:
        return "decode with --tile, or choose a smaller --size"
    return "choose a smaller --batch_size or --size, or close other programs"


def free_memory() -> tuple[int | None, str]:
    """Return bytes that are free where the networks will be, and the name of that place. None where
    the system does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"], "memory of the device"
    if not MEMINFO.exists():
        return None, "memory"
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0]), "memory"


def gigabytes(count: float) -> str:
    """Return 1.24 GB, 83.0 MB, 12.1 kB."""
    unit, size = next(row for row in UNITS if count >= row[1] / 10 or row[1] == 1e3)
    return f"{count / size:.3g} {unit}"


def peak_memory() -> str:
    """Return the most this process has held so far, and its first device where that has a memory of
    its own."""
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    text = gigabytes(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        text += f", on the device {gigabytes(stats['peak_bytes_in_use'])}"
    return text


class Phases:
    """Time and peak memory of the phases of a job."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._rows.append(f"  {name:26}{duration(seconds):>9}   peak memory {peak_memory()}")

    def report(self, log: Log) -> None:
        log(f"done in {duration(time.perf_counter() - self._began)}:")
        for row in self._rows:
            log(row)
