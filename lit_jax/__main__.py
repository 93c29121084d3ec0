"""The door: `python -m lit_jax JOB --flags`. Parses flags and calls one job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

USAGE = """python -m lit_jax train  --config configs/X.py[:ARG] --workdir DIR [--config.KEY=VALUE]
python -m lit_jax sample --model MODEL_DIR_OR_WORKDIR --out DIR --num_samples N
                         [--steps 250 --sampler ddpm --cfg_scale 1.5 --seed 0 --labels 207,360]
Add --helpshort for all flags of a job."""


def define_train_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Experiment file, with ':ARG' if it takes one.")
    flags.DEFINE_string("workdir", None, "Folder of the run; the same command again resumes it.")
    flags.mark_flags_as_required(["config", "workdir"])


def run_train(values: flags.FlagValues) -> None:
    from lit_jax.config import TrainConfig, from_mapping

    config = from_mapping(TrainConfig, values.config.to_dict())
    print(values.config, flush=True)
    initialise_cluster()
    from lit_jax.jobs.train import train

    train(config, values.workdir)


def define_sample_flags() -> None:
    flags.DEFINE_string("model", None, "Model folder or training workdir (its EMA is used).")
    flags.DEFINE_string("out", None, "Folder for samples.npz, grid.png and sample.json.")
    flags.DEFINE_integer("num_samples", None, "Number of images.", lower_bound=1)
    flags.DEFINE_string("sampler", "ddpm", "ddpm or ddim.")
    flags.DEFINE_string("steps", "250", "Respacing: 250, ddim50, or sections as 10,15,20.")
    flags.DEFINE_float("cfg_scale", 1.0, "Classifier-free guidance; 1 is none.")
    flags.DEFINE_string("cfg_channels", "three", "Guided channels: three (official DiT) or all.")
    flags.DEFINE_list("cfg_interval", None, "LOW,HIGH: guide only at timesteps in between.")
    flags.DEFINE_list("labels", [], "Class labels, repeated in this order; default: all in turn.")
    flags.DEFINE_string("schedule", "linear", "Schedule of betas the model was trained with.")
    flags.DEFINE_integer("batch_size", 64, "Images per batch, over all devices.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed; image i depends on it and i alone.")
    flags.mark_flags_as_required(["model", "out", "num_samples"])


def run_sample(values: flags.FlagValues) -> None:
    initialise_cluster()
    from lit_jax.jobs.sample import Protocol, sample

    interval = values.cfg_interval
    protocol = Protocol(
        sampler=values.sampler,
        steps=values.steps,
        cfg_scale=values.cfg_scale,
        cfg_channels=values.cfg_channels,
        cfg_interval=None if interval is None else (float(interval[0]), float(interval[1])),
        seed=values.seed,
        schedule=values.schedule,
    )
    labels = tuple(int(label) for label in values.labels)
    sample(values.model, values.out, values.num_samples, protocol, labels, values.batch_size)


JOBS: dict[str, tuple[Callable[[], None], Callable[[flags.FlagValues], None]]] = {
    "train": (define_train_flags, run_train),
    "sample": (define_sample_flags, run_sample),
}


def initialise_cluster() -> None:
    """Joins the processes of a multi-host job when LIT_JAX_DISTRIBUTED=1 says there are some."""
    if os.environ.get("LIT_JAX_DISTRIBUTED") == "1":
        import jax

        jax.distributed.initialize()


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2 or arguments[1] not in JOBS:
        sys.exit(USAGE)
    define, run = JOBS[arguments[1]]
    logging.set_verbosity(logging.WARNING)  # orbax reports every file it touches at INFO
    define()
    try:
        app.run(lambda _: run(flags.FLAGS), argv=[arguments[0], *arguments[2:]])
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv)
