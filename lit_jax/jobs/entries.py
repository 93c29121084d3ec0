"""From parsed flags to the call of a job, one function each.

Checks what needs nothing but the flags first, so that a slip of the keyboard is answered before
jax is imported.
"""

from __future__ import annotations

from absl import flags

from lit_jax.config import TrainConfig, from_mapping
from lit_jax.jobs import command_line


def run_train(given: flags.FlagValues) -> None:
    config = from_mapping(TrainConfig, given.config.to_dict())
    print(given.config, flush=True)
    from lit_jax.jobs.train import train
    from lit_jax.sharding import join_cluster

    join_cluster()
    train(config, given.workdir)


def run_sample(given: flags.FlagValues) -> None:
    labels = command_line.numbers(given, "labels", int)
    interval = command_line.numbers(given, "cfg_interval", float)
    if len(interval) not in (0, 2):
        raise ValueError(f"--cfg_interval {given.cfg_interval!r} is not of the form LOW,HIGH")
    from lit_jax.jobs.sample import Protocol, sample
    from lit_jax.sharding import join_cluster

    join_cluster()
    protocol = Protocol(
        sampler=given.sampler,
        steps=given.steps,
        cfg_scale=given.cfg_scale,
        cfg_channels=given.cfg_channels,
        cfg_interval=(interval[0], interval[1]) if interval else None,
        seed=given.seed,
    )
    sample(given.model, given.out, given.num_samples, protocol, labels, given.batch_size)


JOBS = {"train": run_train, "sample": run_sample}
