"""Training runs of both demos: the shipped teachers, the losses of the students."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo import curves
from lit_jax.commands.train.job import train
from lit_jax.config import TrainConfig
from lit_jax.runs.hosts import Log
from lit_jax.storage import files
from lit_jax.training.metrics import TRACE, read_trace

ROOT = Path(__file__).resolve().parents[1]
LOSS_TITLE = "noise prediction error of the students while training"


def make_teacher(
    data: Sequence[Sequence[str]], config: str, layout: str, workdir: str, dst: str
) -> None:
    """Run the commands that prepare the data, train `config`, and export the EMA to a file of
    this layout with a note of steps and seconds beside it. All are printed; paths are those of the
    repository's folder."""
    train = ["-m", "lit_jax", "train", "--config", config, "--workdir", workdir]
    export = ["tools/convert_torch_ckpt.py", "--export", "--layout", layout, "--overwrite"]
    for command in (*data, train, [*export, "--src", workdir, "--dst", dst]):
        print("===", "python", *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    trace = read_trace(ROOT / workdir / TRACE)
    note = {
        "config": config,
        "steps": trace[-1]["step"],
        "train_seconds": round(sum(line["clock"]["seconds"] for line in trace)),
    }
    files.write_text((ROOT / dst).with_suffix(".json"), json.dumps(note, indent=2) + "\n")


def train_to_the_end(config: TrainConfig, workdir: Path, log: Log | None = None) -> None:
    """Train, or go on where an earlier call stopped. Raises ValueError for a run that was stopped
    again before its last step."""
    train(config, workdir, log)
    reached = max((line["step"] for line in read_trace(workdir / TRACE)), default=0)
    if reached != config.total_steps:
        raise ValueError(
            f"{workdir} is at step {reached} of {config.total_steps}; run the same command again"
            " to go on, or choose another --out"
        )


def draw_losses(path: Path, models: Mapping[str, Path]) -> None:
    """Plot the L_simple part of the loss, which all students share."""
    found = {}
    for name, model in models.items():
        if trace := read_trace(model / TRACE):
            found[name] = ([line["step"] for line in trace], [line["mse"] for line in trace])
    curves.loss_curves(path, found, title=LOSS_TITLE, ylabel="mse")


def training_effort(model: Path, teacher: Path) -> tuple[int, float]:
    """Return steps and seconds of training; those of `teacher` are in the note beside its file."""
    if trace := read_trace(model / TRACE):
        return trace[-1]["step"], sum(line["clock"]["seconds"] for line in trace)
    recorded = json.loads(teacher.with_suffix(".json").read_text())
    return recorded["steps"], recorded["train_seconds"]
