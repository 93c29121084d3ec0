"""Output of the numbers of a run: TensorBoard, `metrics.jsonl` and the progress line.

The only place that knows clu and, behind it, TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.runs.progress import duration

TRACE = "metrics.jsonl"

# Dense bfloat16 peak per device in FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Return peak FLOP/s of a device: the data sheet's, on a CPU a measured float32 matrix product,
    None for an accelerator that is not in the table."""
    for kind, peak in PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return peak
    if device.platform != "cpu":
        return None
    a = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    # All virtual devices of a CPU share the cores that were just measured.
    return 2 * 1024**3 / min(times) / jax.local_device_count()


class Writer:
    """Scalars and images to TensorBoard and scalars to `metrics.jsonl`, from process 0 only.

    The trace file holds one JSON object per logged step with the exact float32 values. On resume,
    entries after `start_step` are removed: they belong to steps that will be run again.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        # TensorFlow only writes files here; it need not introduce itself and its CPU kernels.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        from clu import metric_writers

        self._board = metric_writers.SummaryWriter(str(workdir))
        self._trace = workdir / TRACE
        _truncate(self._trace, start_step)

    def scalars(self, step: int, values: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """`values` are reproducible and go to both; `clock` (speed, time) likewise, but grouped
        apart in the trace, because it differs from run to run."""
        if not self._active:
            return
        self._board.write_scalars(step, {**values, **clock})
        with self._trace.open("a") as file:
            file.write(json.dumps({"step": step, **values, "clock": dict(clock)}) + "\n")

    def images(self, step: int, name: str, grid_HxWxC: np.ndarray) -> None:
        if self._active:
            self._board.write_images(step, {name: grid_HxWxC[None]})

    def close(self) -> None:
        if self._active:
            self._board.close()


def _truncate(trace: Path, last_step: int) -> None:
    """Keep complete lines up to `last_step`; a kill may have left half a line."""
    kept = [line for line in read_trace(trace) if line["step"] <= last_step]
    temporary = trace.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(trace)


def read_trace(trace: Path) -> list[dict[str, Any]]:
    """Return the logged steps of `metrics.jsonl`, without an unfinished last line; none without a
    file."""
    lines: list[dict[str, Any]] = []
    if not trace.exists():
        return lines
    for line in trace.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Clock:
    """Speed and remaining time of training; `paused` leaves out what is not training."""

    def __init__(self, step: int, total_steps: int, images_per_step: int, flops_per_step: float):
        self._total_steps = total_steps
        self._images = images_per_step
        self._flops = flops_per_step
        peak = peak_flops(jax.devices()[0])
        self._peak = None if peak is None else peak * jax.device_count()
        self._step = step
        self._time = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Yield leaves the time spent inside the block out of every measurement."""
        began = time.perf_counter()
        yield
        self._time += time.perf_counter() - began

    def measure(self, step: int) -> dict[str, float]:
        """Return speed since the last measurement: images/s, TFLOP/s of the model, utilisation,
        ETA."""
        now = time.perf_counter()
        steps, elapsed = step - self._step, now - self._time
        self._step, self._time = step, now
        rate = steps / max(elapsed, 1e-9)
        clock = {
            "images_per_second": rate * self._images,
            "tflops": rate * self._flops / 1e12,
            "eta_seconds": (self._total_steps - step) / max(rate, 1e-9),
            "seconds": elapsed,
        }
        if self._peak is not None:
            clock["utilisation"] = rate * self._flops / self._peak
        return clock


def progress_line(
    step: int, total: int, values: Mapping[str, float], clock: Mapping[str, float]
) -> str:
    """Return step 120/400 loss 0.1234 812 images/s 3% of peak ETA 1:20"""
    parts = [f"step {step:>{len(str(total))}}/{total}", f"loss {values['loss']:.4f}"]
    parts.append(f"{clock['images_per_second']:.0f} images/s")
    parts.append(f"{clock['tflops']:.3g} TFLOP/s")
    if "utilisation" in clock:
        parts.append(f"{clock['utilisation']:.0%} of peak")
    parts.append(f"ETA {duration(clock['eta_seconds'])}")
    return "  ".join(parts)
