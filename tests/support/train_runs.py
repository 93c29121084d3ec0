"""Runs of the train job in processes of their own, and what they leave behind."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from lit_jax.training.metrics import read_trace
from support import tiny_runs

TOTAL, EVERY = 240, 20
AHEAD = 70  # lines of progress that fit into the pipe of a program


def experiment(data_dir: Path, workdir: Path, **values: Any) -> list[str]:
    """The arguments of a run on the digits; `values` are further keys, with "__" for "."."""
    settings = {
        "data__data_dir": data_dir,
        "batch_size": 8,
        "total_steps": TOTAL,
        "log_every": 1,
        "checkpoint_every": EVERY,
    }
    return [
        "train",
        "--config=configs/digits_lit.py:scratch",
        f"--workdir={workdir}",
        *tiny_runs.overrides(**(settings | values)),
    ]


def run_on_two_processes(arguments: list[str]) -> list[str]:
    """The same command in two processes that find each other; what each of them printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = {"LIT_JAX_DISTRIBUTED": "1", "JAX_COORDINATOR_ADDRESS": address}
    programs = [
        tiny_runs.start(arguments, **cluster, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index))
        for index in range(2)
    ]
    return [tiny_runs.finish(program) for program in programs]


def reproducible(workdir: Path) -> list[str]:
    """The lines of the trace without what depends on the clock, as text."""
    lines = read_trace(workdir / "metrics.jsonl")
    return [json.dumps({k: v for k, v in line.items() if k != "clock"}) for line in lines]


def checkpoints(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints; a kill leaves an unfinished one under another name."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def read_until(program: subprocess.Popen[bytes], step: int) -> None:
    """Reads stdout up to the line of `step`; the program is at most AHEAD steps further."""
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith(b"step") and int(line.split(b"/")[0].split()[1]) == step:
            assert len(line) > 4096 / AHEAD
            return
    raise AssertionError(f"the run ended before step {step}: {program.communicate()[1]!r}")
