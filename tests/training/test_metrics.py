"""What a run writes about itself: trace, TensorBoard, speed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_jax.training import metrics


def write(workdir: Path, start_step: int, steps: range) -> None:
    writer = metrics.Writer(workdir, start_step)
    for step in steps:
        writer.scalars(step, {"loss": 1 / step}, {"seconds": 0.5})
    writer.close()


def trace(workdir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metrics.read_trace(workdir / metrics.TRACE)]


def test_trace_goes_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 6))
    with (tmp_path / metrics.TRACE).open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    assert trace(tmp_path) == [(s, 1 / s) for s in range(1, 6)]
    write(tmp_path, 3, range(4, 8))  # steps 4 and 5 are run again
    assert trace(tmp_path) == [(s, 1 / s) for s in range(1, 8)]
    first = json.loads((tmp_path / metrics.TRACE).read_text().splitlines()[0])
    assert first == {"step": 1, "loss": 1.0, "clock": {"seconds": 0.5}}


def test_tensorboard_gets_scalars_and_images(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    writer = metrics.Writer(tmp_path, 0)
    writer.scalars(7, {"loss": 0.25}, {"images_per_second": 3.0})
    writer.images(7, "samples", np.zeros((4, 6, 1), np.uint8))
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = {tag for group in ("scalars", "tensors") for tag in events.Tags()[group]}
    assert {"loss", "images_per_second", "samples"} <= tags
    found: Any = events.Tensors("loss")[0]
    assert (found.step, float(make_ndarray(found.tensor_proto))) == (7, 0.25)


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(metrics, "peak_flops", lambda device: 1e12)
    monkeypatch.setattr(metrics.jax, "device_count", lambda: 4)
    clock = metrics.Clock(10, 110, images_per_step=64, flops_per_step=2e12)
    now[0] += 4
    with clock.paused():  # drawing samples
        now[0] += 100
    now[0] += 6
    assert clock.measure(30) == {
        "images_per_second": 128.0,
        "tflops": 4.0,
        "eta_seconds": 40.0,
        "seconds": 10.0,
        "utilisation": 1.0,  # 2e12 x 2 steps/s on 4 x 1e12
    }


def test_peaks_of_the_data_sheet() -> None:
    def peak(kind: str) -> float | None:
        device: Any = SimpleNamespace(device_kind=kind, platform="gpu")
        return metrics.peak_flops(device)

    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("Abacus 1") is None
    cpu: Any = SimpleNamespace(device_kind="cpu", platform="cpu")
    measured = metrics.peak_flops(cpu)
    assert measured is not None and 1e7 < measured < 1e14


def test_progress_line() -> None:
    clock = {"images_per_second": 812.3, "tflops": 0.01234, "eta_seconds": 80.0}
    text = metrics.progress_line(20, 400, {"loss": 0.12345}, clock)
    assert text == "step  20/400  loss 0.1235  812 images/s  0.0123 TFLOP/s  ETA 1:20"
    text = metrics.progress_line(20, 400, {"loss": 0.12345}, clock | {"utilisation": 0.031})
    assert "3% of peak" in text
    found = [metrics.duration(seconds) for seconds in (0.04, 59.94, 60, 3723)]
    assert found == ["0.0 s", "59.9 s", "1:00", "1:02:03"]
