"""What the benchmarks share: timing in turns, and the table with hardware and versions."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def compare(
    functions: dict[str, Callable[..., Any]], *arguments: Any, rounds: int = 15
) -> dict[str, float]:
    """Median milliseconds per call. The functions take turns, so that a slow moment of a shared
    machine meets all of them."""
    for function in functions.values():
        jax.block_until_ready(function(*arguments))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def save(name: str, rows: list[dict[str, Any]], ratio: tuple[str, str]) -> None:
    """Prints the table with the ratio of two columns and writes it with its circumstances."""
    slow, fast = ratio
    for row in rows:
        row["ratio"] = row[slow] / row[fast]
    unit = "milliseconds, median of alternating calls"
    write(name, rows, {"unit": unit, "ratio": f"{slow} / {fast}"})


def write(name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Prints the table and writes it with what it is `about`, hardware and versions."""
    columns = list(rows[0])
    print("  ".join(f"{column:>12}" for column in columns))
    for row in rows:
        cells = (v if isinstance(v, str) else f"{v:.3f}" for v in row.values())
        print("  ".join(f"{cell:>12}" for cell in cells))
    device = jax.devices()[0]
    content = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    content |= about | {"rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{device.platform}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {path}")
