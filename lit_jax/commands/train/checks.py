"""Checks of a training run, before anything is compiled or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.stored import CONFIG, PARAMS
from lit_jax.checkpoints.writing import check_local
from lit_jax.commands.train.data import DataInfo, check_data, check_recorded, open_data
from lit_jax.commands.train.grids import check_grids
from lit_jax.config import TrainConfig
from lit_jax.data.stream import BatchStream
from lit_jax.diffusion.gaussian import GaussianProcess
from lit_jax.inheritance import inherited_paths
from lit_jax.models import functional, registry
from lit_jax.models.family import architecture
from lit_jax.models.registry import DenoiserConfig
from lit_jax.objectives import Objective, hybrid_objective
from lit_jax.runs.hosts import Log
from lit_jax.sampling.sampler import make_process
from lit_jax.training.optimizer import frozen_mask, make_optimizer

# What the teacher must share with the student: their inputs and outputs are compared. For those
# conditioned on labels, and those conditioned on captions.
SHARED: Mapping[str, tuple[str, ...]] = {
    "label": ("image_size", "in_channels", "num_classes", "learn_sigma", "null_label"),
    "caption": (
        *("image_size", "in_channels", "caption_channels", "pe_interpolation"),
        *("micro_condition", "learn_sigma"),
    ),
}


@dataclass
class Run:
    """Result of the checks, before anything is compiled or written."""

    config: TrainConfig
    workdir: Path
    mesh: Mesh
    student: DenoiserConfig
    teacher: DenoiserConfig | None
    teacher_folder: ModelFolder | None
    source: ModelFolder | None
    process: GaussianProcess
    objective: Objective
    data: BatchStream
    info: DataInfo
    log: Log


def check(config: TrainConfig, workdir: Path, log: Log) -> Run:
    """Check everything without touching the memory of a device or the workdir."""
    spec = config.model
    family = registry.family_named(registry.model_family(spec.name))
    if family.condition is None:
        denoisers = [name for name, one in registry.members().items() if one.condition]
        raise ValueError(
            f"model.name is {spec.name!r}; denoisers are trained: {', '.join(denoisers)}"
        )
    student = registry.model_config(
        spec.name,
        **{
            **spec.overrides,
            "dtype": spec.dtype,
            "remat": spec.remat,
            "scan_unroll": spec.scan_unroll,
        },
    )
    mesh = sharding.make_mesh(config.mesh)
    per_update = mesh.size * config.optimizer.accumulation
    if config.batch_size % per_update:
        raise ValueError(
            f"batch_size {config.batch_size} is not divisible by {mesh.size} devices"
            f" x {config.optimizer.accumulation} accumulation steps = {per_update}"
        )
    functional.shardings(student, mesh)
    process = make_process(student, "")
    objective = hybrid_objective(process, config.distill)
    patterns = (*config.inherit.freeze, *functional.buffer_paths(student))
    frozen = frozen_mask(functional.abstract_params(student), patterns)
    if all(jax.tree.leaves(frozen)):
        raise ValueError(
            f"inherit.freeze {config.inherit.freeze} matches every parameter: nothing is left to"
            " train; leave out a pattern"
        )
    make_optimizer(config.optimizer, config.total_steps, frozen, student)
    info = check_data(config, student)

    teacher_folder, teacher = check_teacher(config, student, info)
    source = check_inheritance(config, student, info)
    if config.sample.every:
        check_grids(config, student, info, mesh)
    check_workdir(workdir, student)
    data = open_data(
        config,
        student,
        info,
        config.batch_size,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        workers=config.data.workers,
    )
    return Run(
        config,
        workdir,
        mesh,
        student,
        teacher,
        teacher_folder,
        source,
        process,
        objective,
        data,
        info,
        log,
    )


def check_teacher(
    config: TrainConfig, student: DenoiserConfig, data: DataInfo
) -> tuple[ModelFolder | None, DenoiserConfig | None]:
    """Return the teacher's folder and configuration; its inputs and outputs must be the
    student's."""
    path = config.distill.teacher
    if not path:
        return None, None
    folder = ModelFolder(path, expect="denoiser", flag="distill.teacher")
    stored: Any = folder.config
    teacher = dataclasses.replace(stored, dtype=student.dtype, scan_unroll=student.scan_unroll)
    condition = registry.family_of(student).condition or ""
    if not folder.is_a(condition):
        raise ValueError(
            f"teacher {path} is a {teacher.family}, the student a {student.family}; one is"
            " conditioned on labels, the other on captions"
        )
    for name in SHARED[condition]:
        if getattr(teacher, name) != getattr(student, name):
            raise ValueError(
                f"teacher {path} has {name}={getattr(teacher, name)}, the student"
                f" {getattr(student, name)}; distillation compares their outputs"
            )
    if config.distill.compares_attention:
        check_attention(path, teacher, student)
    check_recorded(folder, data, "teacher")
    return folder, teacher


def check_attention(path: str, teacher: DenoiserConfig, student: DenoiserConfig) -> None:
    """Refuse attention outputs that do not correspond layer by layer, token by token, channel by
    channel."""
    theirs, ours = attention_outputs(teacher), attention_outputs(student)
    for what in ours:
        if theirs[what] != ours[what]:
            raise ValueError(
                f"teacher {path} has {theirs[what]} {what}, the student {ours[what]}; attention"
                " distillation compares them one by one: take a teacher of the student's shape, or"
                " set distill.attention_weight=0"
            )


def attention_outputs(config: DenoiserConfig) -> dict[str, int]:
    """Return the axes of the attention outputs of one image, before their projection."""
    path = registry.roles_of(config).projection.format("out") + "/kernel"
    layers, channels, _ = functional.parameter(functional.abstract_params(config), path).shape
    return {"layers": layers, "tokens": config.num_tokens, "channels of attention": channels}


def check_inheritance(
    config: TrainConfig, student: DenoiserConfig, data: DataInfo
) -> ModelFolder | None:
    """Return the source of weights; refuse one that lacks what its policy names, in the student's
    shapes."""
    settings = config.inherit
    if not settings.source:
        return None
    source = ModelFolder(settings.source, expect="denoiser", flag="inherit.source")
    check_recorded(source, data, "source")
    network: Any = source.config
    shapes, given = functional.abstract_params(student), functional.abstract_params(network)
    inherited_paths(student, shapes, network, given, settings.policy, settings.reinitialise)
    return source


def check_workdir(workdir: Path, student: DenoiserConfig) -> None:
    """Refuse a workdir of another model, a model folder, whose weights would shadow those of the
    run, and an address that is no path."""
    check_local(workdir, "workdir")
    if (workdir / PARAMS).exists():
        raise ValueError(f"workdir {workdir} is a model folder; choose another workdir")
    if not (workdir / CONFIG).exists():
        return
    stored, expected = (
        architecture(ModelFolder(workdir, finished=False).config),
        architecture(student),
    )
    differing = [
        f"{k}={stored[k]} (config: {expected[k]})" for k in expected if stored[k] != expected[k]
    ]
    if differing:
        raise ValueError(
            f"workdir {workdir} holds a run of another model: {', '.join(differing)};"
            " choose another workdir"
        )
