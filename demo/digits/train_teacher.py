"""Makes the demo's teacher again: `make teacher` (about half an hour on two cores).

Prepares the digits, trains `configs/digits_teacher.py`, and exports the EMA to the official DiT key
layout, with a note of steps and seconds beside it. The shipped file stays where it is until the new
one is complete.
"""

from __future__ import annotations

import argparse

from demo.training_runs import make_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/digits_teacher", help="folder of the run")
    parser.add_argument("--dst", default="demo/teacher/digits_dit.safetensors", help="the teacher")
    args = parser.parse_args()
    data = [["-m", "lit_jax.data", "digits", "runs/demo/data"]]
    make_teacher(data, "configs/digits_teacher.py", "dit", args.workdir, args.dst)


if __name__ == "__main__":
    main()
