"""Makes the text-to-image demo's teacher again: `make teacher-t2i` (most of an hour on two cores).

Renders the images, encodes them, trains `configs/shapes_teacher.py` and exports the EMA to the
official PixArt key layout, with a note of steps and seconds beside it. The shipped file stays where
it is until the new one is complete. The VAE and the text encoder are the shipped ones; the programs
`demo.t2i.train_vae` and `demo.t2i.train_text_encoder` make those.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from demo.t2i.models import SHIPPED
from lit_jax import files
from lit_jax.training.metrics import TRACE, read_trace

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/shapes_teacher", help="folder of the run")
    parser.add_argument("--dst", default=str(SHIPPED["teacher"]), help="the teacher")
    args = parser.parse_args()
    encode = ["-m", "lit_jax", "encode", "--config", "configs/shapes_encode.py"]
    train = ["-m", "lit_jax", "train", "--config", "configs/shapes_teacher.py"]
    export = ["tools/convert_torch_ckpt.py", "--export", "--layout", "pixart", "--overwrite"]
    for command in (
        ["-m", "demo.t2i.shapes", "runs/demo-t2i/images"],
        ["-m", "demo.t2i.models", "--only", "vae", "text_encoder"],
        [*encode, "--out", "runs/demo-t2i/latents"],
        [*train, "--workdir", args.workdir],
        [*export, "--src", args.workdir, "--dst", args.dst],
    ):
        print("===", "python", *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    trace = read_trace(ROOT / args.workdir / TRACE)
    note = {
        "config": "configs/shapes_teacher.py",
        "steps": trace[-1]["step"],
        "train_seconds": round(sum(line["clock"]["seconds"] for line in trace)),
    }
    files.write_text((ROOT / args.dst).with_suffix(".json"), json.dumps(note, indent=2) + "\n")


if __name__ == "__main__":
    main()
