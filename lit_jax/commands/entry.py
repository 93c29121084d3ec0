"""From parsed flags to the call of a job, one function each.

Checks what needs nothing but the flags first, so that a slip of the keyboard is answered before
jax is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import flags

from lit_jax.commands import flags as command_line
from lit_jax.config import EncodeConfig, TrainConfig, from_mapping
from lit_jax.config.cost import CostConfig
from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from lit_jax.config.generate import GenerateConfig, parse_size
from lit_jax.config.self_generate import SelfGenerateConfig


def run_train(given: flags.FlagValues) -> None:
    config = from_mapping(TrainConfig, given.config.to_dict())
    print(given.config, flush=True)
    from lit_jax.commands.train.job import train
    from lit_jax.sharding import join_cluster

    join_cluster()
    train(config, given.workdir)


def run_encode(given: flags.FlagValues) -> None:
    config = from_mapping(EncodeConfig, given.config.to_dict())
    print(given.config, flush=True)
    from lit_jax.commands.encode.job import encode
    from lit_jax.sharding import join_cluster

    join_cluster()
    encode(config, given.out)


def run_self_generate(given: flags.FlagValues) -> None:
    config = from_mapping(SelfGenerateConfig, given.config.to_dict())
    print(given.config, flush=True)
    from lit_jax.commands.self_generate.job import self_generate
    from lit_jax.sharding import join_cluster

    join_cluster()
    self_generate(config, given.out)


def run_sample(given: flags.FlagValues) -> None:
    draw = sampling(given)
    from lit_jax.sharding import join_cluster

    join_cluster()
    draw(given.out)


def sampling(given: flags.FlagValues) -> Callable[[str | Path], Path]:
    """Return `draw(folder)` runs the sample job as these flags say."""
    labels = command_line.numbers(given, "labels", int)
    interval = command_line.numbers(given, "cfg_interval", float)
    if len(interval) not in (0, 2):
        raise ValueError(f"--cfg_interval {given.cfg_interval!r} is not of the form LOW,HIGH")

    def draw(out: str | Path) -> Path:
        from lit_jax.commands.sample.job import Protocol, sample

        protocol = Protocol(
            sampler=given.sampler,
            steps=given.steps,
            cfg_scale=given.cfg_scale,
            cfg_channels=given.cfg_channels,
            cfg_interval=(interval[0], interval[1]) if interval else None,
            seed=given.seed,
        )
        return sample(
            given.model,
            out,
            given.num_samples,
            protocol,
            labels,
            given.batch_size,
            label_policy=given.label_policy,
            vae=given.vae,
            save_latents=given.save_latents,
            dtype=given.dtype,
            shard_size=given.shard_size,
            decode_batch_size=given.decode_batch_size,
            sequence=given.sequence,
            window_size=given.window_size,
            down_factor=given.down_factor,
        )

    return draw


def run_evaluate(given: flags.FlagValues) -> None:
    reference = None
    if given.reference or not given.self_test:
        reference = ReferenceConfig(
            source=given.reference,
            data_dir=given.reference_data_dir,
            resolution=given.resolution,
            images=given.reference_images if given["reference_images"].present else 0,
            cache_dir=given.cache_dir,
        )
    if not given.model:
        _require_unused(given, command_line.SAMPLING_FLAGS, "--model, whose samples are drawn")
    if given.self_test:
        _require_unused(given, ("samples", "model", "out", "is_splits"), "a real evaluation")
        if reference and not given.inception:
            raise ValueError("--inception is missing, whose statistics the --reference has")
        from lit_jax.commands.evaluate.self_test import self_test

        self_test(given.inception, reference, given.inception_batch_size)
        return
    assert reference is not None
    config = EvaluateConfig(
        reference=reference,
        samples=given.samples,
        model=given.model,
        inception=given.inception,
        out=given.out,
        is_splits=given.is_splits,
        inception_batch_size=given.inception_batch_size,
    )
    if given.model and given.num_samples < max(2, given.is_splits):
        raise ValueError(
            f"--num_samples {given.num_samples} cannot fill --is_splits {given.is_splits} of the"
            " Inception Score; draw more, or use fewer splits"
        )
    if given.model and given.save_latents and not given.vae:
        raise ValueError(
            "--save_latents without --vae draws latents only, which have no scores; give the --vae"
        )
    draw = sampling(given) if given.model else None
    from lit_jax.commands.evaluate.job import evaluate
    from lit_jax.sharding import join_cluster

    join_cluster()
    evaluate(config, draw)


def run_generate(given: flags.FlagValues) -> None:
    names = [field.name for field in dataclasses.fields(GenerateConfig)]
    values = {name: getattr(given, name) for name in names} | {"size": parse_size(given.size)}
    config = GenerateConfig(**values)
    from lit_jax.commands.generate.job import generate
    from lit_jax.sharding import join_cluster

    join_cluster()
    generate(config)


def run_cost(given: flags.FlagValues) -> None:
    config = CostConfig(
        models=tuple(name for part in given.model.split(",") if (name := part.strip())),
        out=given.out,
        resolutions=command_line.numbers(given, "resolutions", int),
        vae_factor=given.vae_factor,
        compile_up_to=given.compile_up_to,
        batch_size=given.batch_size,
        dtype=given.dtype,
    )
    from lit_jax.commands.cost.job import cost

    cost(config)


def _require_unused(given: flags.FlagValues, names: Iterable[str], owner: str) -> None:
    """Flags that would be ignored are refused."""
    for name in names:
        if given[name].present:
            raise ValueError(f"--{name} belongs to {owner}; leave it out")


JOBS = {
    "encode": run_encode,
    "self_generate": run_self_generate,
    "train": run_train,
    "sample": run_sample,
    "evaluate": run_evaluate,
    "generate": run_generate,
    "cost": run_cost,
}
