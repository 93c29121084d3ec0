"""What both demos do with training runs: make the shipped teacher, and tell of the students."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo import curves
from lit_jax.storage import files
from lit_jax.training.metrics import TRACE, read_trace

ROOT = Path(__file__).resolve().parents[1]
LOSS_TITLE = "noise prediction error of the students while training"


def make_teacher(
    data: Sequence[Sequence[str]], config: str, layout: str, workdir: str, dst: str
) -> None:
    """Runs the commands that prepare the data, trains `config`, and exports the EMA to a file of
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


def draw_losses(path: Path, models: Mapping[str, Path]) -> None:
    """A picture of the L_simple part of each student's loss, which all of them share."""
    found = {}
    for name, model in models.items():
        if trace := read_trace(model / TRACE):
            found[name] = ([line["step"] for line in trace], [line["mse"] for line in trace])
    curves.loss_curves(path, found, title=LOSS_TITLE, ylabel="mse")


def training_effort(model: Path, teacher: Path) -> tuple[int, float]:
    """Steps and seconds of training; of the shipped `teacher`, the note beside its file tells."""
    if trace := read_trace(model / TRACE):
        return trace[-1]["step"], sum(line["clock"]["seconds"] for line in trace)
    recorded = json.loads(teacher.with_suffix(".json").read_text())
    return recorded["steps"], recorded["train_seconds"]
