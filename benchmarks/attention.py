"""Latency and memory of every mixer against resolution, as a module and within a network.

    python benchmarks/attention.py                     # everything, some minutes
    python benchmarks/attention.py --up_to 512         # a quick look

Modules are those of DiT-S/2 (width 384; 6 heads, LiT's linear attention 2, SANA's 12), with their
projections, batch 1, `jax.jit`, parameters at random. Networks are S/2 with `--depth` blocks: all
12 on an accelerator, 1 on a CPU, whose full network would take minutes per call at 2048 pixels.
16 pixels per axis are one token. Float32 on a CPU, bfloat16 on an accelerator.

"softmax" is the naive form, which holds all N x N logits. "fused" is the best the backend has:
cuDNN's flash attention on a GPU; XLA has none for a CPU, where it is the same mathematics in blocks
of 512 queries, written here. Cases of one resolution are timed in turns in one process, medians;
sub-quadratic ones also over all sizes in turns, for the exponent of time against tokens.

Memory is measured twice, each case in a process of its own: "resident" is the peak of the process
during a call minus what it held before (on an accelerator the allocator's peak minus what it held);
"buffers" are the temporary arrays and outputs that the compiler reserves. Writes
`benchmarks/results/attention_<platform>.json` and docs/images/attention_<platform>.png.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attention_plots import plot
from flax import nnx
from timing import RESULTS, compare, write

from lit_jax.models import functional, registry
from lit_jax.models.attention import make_mixer
from lit_jax.models.attention.gated import GatedAttention
from lit_jax.models.attention.softmax import SoftmaxAttention
from lit_jax.models.registry import DenoiserConfig

PIXELS = 16  # per token and axis
QUERIES = 512  # per block of the blockwise form

# Case -> model and arguments.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("DiT-S/2", {}),
    "fused": ("DiT-S/2", {}),
    "linear": ("LiT-S/2", {}),
    "focused": ("LiT-S/2", {"mixer": "focused"}),
    "sana": (
        "LiT-S/2",
        {"mixer": "sana", "num_heads": 12, "kernel_size": None, "qkv_bias": False},
    ),
    "window r=8": ("CLEAR-S/2", {"window_size": 8}),
    "window r=16": ("CLEAR-S/2", {"window_size": 16}),
    "window r=8 + pool": ("CLEAR-S/2", {"window_size": 8, "down_factor": 4}),
    "gated": ("DiG-S/2", {}),
}
QUADRATIC = ("softmax", "fused")
NETWORKS = ("softmax", "fused", "linear", "window r=8", "gated")
# Pooled tokens of the whole image: 1/16 of softmax, but quadratic.
FITTED = ("linear", "sana", "window r=8", "window r=16", "gated")

TABLE_SIDES = (16, 32, 64, 128)  # tokens: 256 ... 2048 pixels
FIT_SIDES = (64, 88, 128, 184, 256)  # 1024 ... 4096 pixels

NAIVE_BYTES = 16 * 2**30
"""What must be free for naive softmax at 2048 pixels: 6 heads of 16,384^2 float32 logits, twice."""


class BlockwiseSoftmax(SoftmaxAttention):
    """Softmax attention that holds the logits of some queries at a time."""

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, grid: Any) -> jax.Array:
        B, N, H, d = q.shape
        size = min(N, QUERIES)
        blocks = q.reshape(B, N // size, size, H, d).swapaxes(0, 1)
        attend = functools.partial(jax.nn.dot_product_attention, key=k, value=v)
        return jax.lax.map(attend, blocks).swapaxes(0, 1).reshape(q.shape)


class CudnnSoftmax(SoftmaxAttention):
    """cuDNN's flash attention."""

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, grid: Any) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


FUSED = {"cpu": BlockwiseSoftmax, "gpu": CudnnSoftmax}


def config_of(case: str, side: int, depth: int = 1) -> DenoiserConfig:
    name, arguments = CASES[case]
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    shape = {"input_size": 2 * side, "depth": depth, "dtype": dtype}
    return registry.model_config(name, **shape, **arguments)


def mixer_of(case: str, side: int) -> Any:
    """The module that mixes tokens in a block of this case."""
    config = config_of(case, side)
    if case == "fused":
        return FUSED[jax.default_backend()](config, rngs=nnx.Rngs(0))
    if case == "gated":
        return GatedAttention(config, rngs=nnx.Rngs(0))
    return make_mixer(config, nnx.Rngs(0))


def filled(shapes: Any) -> Any:
    """Parameters at random; initialising them as for training would compile for seconds."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype), shapes
    )


Log = Callable[[str], None]
Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A compiled function and its arguments."""


def compiled(graphdef: Any, shapes: Any, *inputs: Any) -> Call:
    """The module called with `inputs`; those that are no arrays are known when it is compiled."""
    arrays = tuple(value for value in inputs if isinstance(value, jax.Array))
    others = inputs[len(arrays) :]

    def run(state: Any, *arrays: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(*arrays, *others)

    arguments = (filled(shapes), *arrays)
    return jax.jit(run).lower(*arguments).compile(), arguments


def module_call(case: str, side: int) -> Call:
    """The mixer on [1, side^2, 384] numbers."""
    config = config_of(case, side)
    x = jax.random.normal(jax.random.key(1), (1, side * side, config.hidden_size), config.dtype)
    module = nnx.eval_shape(lambda: mixer_of(case, side))
    return compiled(*nnx.split(module), x, (side, side))


def network_call(case: str, side: int, depth: int) -> Call:
    """The network of `depth` blocks on one latent."""
    config = config_of(case, side, depth)
    model = nnx.eval_shape(lambda: functional.build(config, nnx.Rngs(0)))
    if case == "fused":  # the same parameters, another way to attend
        model.blocks.attn.__class__ = FUSED[jax.default_backend()]
    x = jax.random.normal(jax.random.key(1), (1, *config.image_size, config.in_channels))
    return compiled(*nnx.split(model), x, jnp.full(1, 500), jnp.zeros(1, jnp.int32))


def call_of(what: str, case: str, side: int, depth: int) -> Call:
    return module_call(case, side) if what == "module" else network_call(case, side, depth)


def timed(what: str, side: int, cases: list[str], depth: int) -> dict[str, float]:
    """Milliseconds per call of all cases at one resolution, in turns."""
    calls = {case: call_of(what, case, side, depth) for case in cases}
    functions = {case: functools.partial(*[f, *a]) for case, (f, a) in calls.items()}
    return compare(functions, rounds=3 if side >= 128 else 7)


def timed_over_sides(cases: list[str], sides: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Milliseconds of a module per call, by case and side, all of them in turns."""
    calls = {f"{case}|{side}": module_call(case, side) for case in cases for side in sides}
    functions = {name: functools.partial(*[f, *a]) for name, (f, a) in calls.items()}
    times = compare(functions, rounds=5)
    return {case: {str(side): times[f"{case}|{side}"] for side in sides} for case in cases}


def resident(name: str) -> int:
    """A line of this process's memory status, in bytes: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")


def memory(what: str, case: str, side: int, depth: int) -> dict[str, float]:
    """MiB that one call needs beyond its arguments, as measured and as compiled."""
    function, arguments = call_of(what, case, side, depth)
    analysis = function.memory_analysis()
    buffers = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    jax.block_until_ready(arguments)
    gc.collect()
    if jax.default_backend() == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling left would hide what is measured
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        before = resident("VmRSS")
        jax.block_until_ready(function(*arguments))
        peak = resident("VmHWM") - before
    else:
        device = jax.devices()[0]
        before = device.memory_stats()["bytes_in_use"]
        jax.block_until_ready(function(*arguments))
        peak = device.memory_stats()["peak_bytes_in_use"] - before
    return {"resident": peak / 2**20, "buffers": buffers / 2**20}


def child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own, which is forked off before jax has started
    any thread, so that it need not import everything again."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send(function(*arguments))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__}{arguments} ended without a result") from None
    finally:
        process.join()


def enough_memory(platform: str) -> bool:
    """Whether naive softmax at the largest size fits in what is free now."""
    if platform != "cpu":
        return True
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1]) > NAIVE_BYTES
    return False


def measure(
    what: str, sides: list[int], cases: list[str], depth: int, platform: str, log: Log
) -> list[dict[str, Any]]:
    """A row per resolution and case: time, both kinds of memory."""
    rows = []
    for side in sides:
        present = [c for c in cases if c != "softmax" or side < 128 or enough_memory(platform)]
        if present != cases:
            log(f"less than {NAIVE_BYTES >> 30} GiB are free: no naive softmax at {side} tokens")
        times = child(timed, what, side, present, depth)
        for case in present:
            row = {"what": what, "pixels": str(side * PIXELS), "case": case}
            row |= {"ms": times[case]} | child(memory, what, case, side, depth)
            rows.append(row)
        done = ", ".join(f"{case} {times[case]:.4g} ms" for case in present)
        log(f"{what} {side * PIXELS} px: {done}")
    return rows


def exponent(times: dict[str, float]) -> float:
    """Slope of log time against log tokens, least squares."""
    tokens = [math.log(int(side) ** 2) for side in times]
    return float(np.polyfit(tokens, [math.log(ms) for ms in times.values()], 1)[0])


def checks(rows: list[dict[str, Any]], fits: dict[str, float]) -> dict[str, dict[str, Any]]:
    """What is claimed of the modules -> the number measured, its limit, and whether it holds."""
    largest = {r["case"]: r for r in rows if r["what"] == "module" and r["pixels"] == "2048"}
    found: dict[str, dict[str, Any]] = {}

    def check(name: str, value: float, limit: float, at_least: bool) -> None:
        holds = value >= limit if at_least else value < limit
        found[name] = {"measured": value, "limit": limit, "holds": holds}

    if "softmax" in largest:
        slow = largest["softmax"]
        for case, limit in (("linear", 15), ("gated", 5), ("window r=8", 5), ("window r=16", 5)):
            if case in largest:
                ratio = slow["ms"] / largest[case]["ms"]
                check(f"2048 px: {case} is faster than naive softmax, times", ratio, limit, True)
        for kind in ("resident", "buffers"):
            share = largest["linear"][kind] / slow[kind]
            check(f"2048 px: {kind} memory of linear over naive softmax", share, 1 / 3, False)
    for case in ("linear", "gated", "window r=8", "window r=16"):
        if case in fits:
            check(f"exponent of time against tokens, {case}", fits[case], 1.1, False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--up_to", type=int, default=4096, help="largest side in pixels")
    parser.add_argument("--depth", type=int, default=0, help="blocks of the networks")
    parser.add_argument("--cases", default=",".join(CASES), help="with commas in between")
    given = parser.parse_args()
    began = time.perf_counter()

    def log(text: str) -> None:
        print(f"[{time.perf_counter() - began:.0f} s] {text}", flush=True)

    platform = child(jax.default_backend)
    depth = given.depth or (1 if platform == "cpu" else 12)
    cases = given.cases.split(",")
    sides = [side for side in TABLE_SIDES if side * PIXELS <= given.up_to]
    fit_sides = [side for side in FIT_SIDES if side * PIXELS <= given.up_to]
    over_sides: dict[str, dict[str, float]] = {}
    for case in cases:
        if case in FITTED and len(fit_sides) > 1:
            over_sides |= child(timed_over_sides, [case], fit_sides)
            log(f"{case}, by side in tokens: {over_sides[case]}")
    fits = {case: exponent(times) for case, times in over_sides.items()}
    networks = [case for case in cases if case in NETWORKS]
    rows = measure("network", sides, networks, depth, platform, log)
    rows += measure("module", sides, cases, depth, platform, log)
    found = checks(rows, fits)
    about = {
        "units": "ms: median of calls in turns; resident, buffers: MiB beyond the arguments",
        "dtype": "float32" if platform == "cpu" else "bfloat16",
        "fused": FUSED[platform].__name__,
        "blocks_of_networks": depth,
        "milliseconds_by_side_in_tokens": over_sides,
        "exponents": fits,
        "checks": found,
    }
    write("attention", rows, about)
    plot(RESULTS / f"attention_{platform}.json")
    for name, one in found.items():
        verdict = "yes" if one["holds"] else "NO"
        print(f"{verdict:>4}  {name}: {one['measured']:.3g} (limit {one['limit']:.3g})")
    log("done")


if __name__ == "__main__":
    main()
