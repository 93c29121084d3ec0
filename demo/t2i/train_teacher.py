"""Makes the text-to-image demo's teacher again: `make teacher-t2i` (most of an hour on two cores).

Renders the images, encodes them, trains `configs/shapes_teacher.py` and exports the EMA to the
official PixArt key layout, with a note of steps and seconds beside it. The shipped file stays where
it is until the new one is complete. The VAE and the text encoder are the shipped ones; the programs
`demo.t2i.train_vae` and `demo.t2i.train_text_encoder` make those.
"""

from __future__ import annotations

import argparse

from demo.t2i.models import SHIPPED
from demo.training_runs import make_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/shapes_teacher", help="folder of the run")
    parser.add_argument("--dst", default=str(SHIPPED["teacher"]), help="the teacher")
    args = parser.parse_args()
    encode = ["-m", "lit_jax", "encode", "--config", "configs/shapes_encode.py"]
    data = [
        ["-m", "demo.t2i.shapes", "runs/demo-t2i/images"],
        ["-m", "demo.t2i.models", "--only", "vae", "text_encoder"],
        [*encode, "--out", "runs/demo-t2i/latents"],
    ]
    make_teacher(data, "configs/shapes_teacher.py", "pixart", args.workdir, args.dst)


if __name__ == "__main__":
    main()
