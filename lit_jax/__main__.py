"""The door: `python -m lit_jax JOB --flags`. Parses flags and calls one job."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from absl import logging

from lit_jax.commands import flags as command_line
from lit_jax.commands.entry import JOBS
from lit_jax.config import unknown_name

USAGE = """python -m lit_jax encode --config configs/X.py[:ARG] --out DIR [--config.KEY=VALUE]
python -m lit_jax self_generate --config configs/X.py[:ARG] --out DIR [--config.KEY=VALUE]
python -m lit_jax train  --config configs/X.py[:ARG] --workdir DIR [--config.KEY=VALUE]
python -m lit_jax sample --model MODEL_DIR_OR_WORKDIR --out DIR --num_samples N
                         [--vae VAE_DIR --steps 250 --cfg_scale 1.5 --label_policy uniform]
python -m lit_jax evaluate --samples NPZ_OR_FOLDER --reference NPZ_OR_FOLDER
                         --inception MODEL_DIR --out metrics.json
python -m lit_jax generate --model MODEL_DIR --text_encoder MODEL_DIR --vae MODEL_DIR
                         --prompt "..." --out image.png [--size 768x1344 --num_images 4]
python -m lit_jax cost   --model DiT-S/2,LiT-S/2 --out DIR [--resolutions 256,1024]
Add --help to a job for all its flags."""
HELP = {"-h", "--help", "--helpshort", "--helpfull"}


def main() -> None:
    job, argv = " ".join(sys.argv[1:2]), sys.argv[1:]
    if not job or job in HELP:
        sys.exit(print(USAGE) if job else USAGE)
    logging.set_verbosity(logging.ERROR)  # orbax reports every file it touches
    try:
        if job not in JOBS:
            raise unknown_name("job", job, JOBS)
        given = command_line.declare(job)
        if HELP & set(argv):
            sys.exit(print(f"{USAGE}\n{given.get_help()}"))
        command_line.parse(given, argv)
        JOBS[job](given)
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_message(error):
            raise
        sys.exit("error: " + " ".join(str(error).split()))


def is_message(error: Exception) -> bool:
    """Return whether `error` is meant for the user. A ValueError out of a library is a bug: it
    keeps its traceback."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    return not isinstance(error, ValueError) or Path(file).is_relative_to(Path(__file__).parent)


if __name__ == "__main__":
    main()
