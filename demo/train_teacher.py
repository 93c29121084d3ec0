"""Makes the demo's teacher again: `make teacher` (about half an hour on two cores).

Prepares the digits, trains `configs/digits_teacher.py`, and exports the EMA to the official DiT key
layout, with a note of steps and seconds beside it. The shipped file stays where it is until the new
one is complete.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from lit_jax import files
from lit_jax.training.metrics import TRACE, read_trace

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/digits_teacher", help="folder of the run")
    parser.add_argument("--dst", default="demo/teacher/digits_dit.safetensors", help="the teacher")
    args = parser.parse_args()
    train = ["-m", "lit_jax", "train", "--config", "configs/digits_teacher.py"]
    export = ["tools/convert_torch_ckpt.py", "--export", "--layout", "dit", "--overwrite"]
    for command in (
        ["-m", "lit_jax.data", "digits", "runs/demo/data"],
        [*train, "--workdir", args.workdir],
        [*export, "--src", args.workdir, "--dst", args.dst],
    ):
        print("===", "python", *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    trace = read_trace(ROOT / args.workdir / TRACE)
    note = {
        "config": "configs/digits_teacher.py",
        "steps": trace[-1]["step"],
        "train_seconds": round(sum(line["clock"]["seconds"] for line in trace)),
    }
    files.write_text((ROOT / args.dst).with_suffix(".json"), json.dumps(note, indent=2) + "\n")


if __name__ == "__main__":
    main()
