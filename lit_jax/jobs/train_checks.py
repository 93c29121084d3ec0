"""What the train job refuses before it compiles or writes anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.config import DiTConfig, TrainConfig, architecture, from_mapping
from lit_jax.data import pipeline
from lit_jax.data.schema import LatentSchema, read_schema
from lit_jax.data.stream import BatchStream
from lit_jax.diffusion.gaussian import GaussianProcess
from lit_jax.inheritance import inherited_paths
from lit_jax.jobs.drawing import Protocol, make_process
from lit_jax.jobs.sample_checks import check as check_sampling
from lit_jax.models import zoo
from lit_jax.objectives import Objective, hybrid_objective
from lit_jax.training.optimizer import frozen_mask, learning_rate
from lit_jax.weights import folder
from lit_jax.weights.fingerprint import VaeIdentity, vae_identity

Say = Callable[[str], None]


@dataclass
class Run:
    """What the checks have established, before anything is compiled or written. `vae` is that of
    the latents, None for pixels."""

    config: TrainConfig
    workdir: Path
    mesh: Mesh
    student: DiTConfig
    teacher: DiTConfig | None
    process: GaussianProcess
    objective: Objective
    data: BatchStream
    vae: VaeIdentity | None
    say: Say


def check(config: TrainConfig, workdir: Path, say: Say) -> Run:
    """All that can be refused without touching a device's memory or the workdir."""
    spec = config.model
    if zoo.model_family(spec.name) not in ("DiT", "LiT"):
        raise ValueError(
            f"model.name is {spec.name!r}; this job trains a DiT or LiT on class labels"
        )
    student = zoo.model_config(
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
    sharding.tree_shardings(zoo.abstract_params(student), mesh)
    process = make_process(student, "")
    objective = hybrid_objective(process, config.distill)
    learning_rate(config.optimizer, config.total_steps)
    frozen_mask(zoo.abstract_params(student), config.inherit.freeze)
    vae = check_data(config, student)

    teacher = check_teacher(config, student)
    if config.inherit.source:
        check_inheritance(config, student)
    if config.sample.every:
        check_sampling(student, grid_protocol(config, student), (), config.sample.count, mesh.size)
    check_workdir(workdir, student)
    data = pipeline.make_train_iterator(
        config.data.name,
        config.data.data_dir,
        config.data.split,
        config.batch_size,
        config.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        flip=config.data.flip,
        labels=student.num_classes > 0,
        workers=config.data.workers,
    )
    return Run(config, workdir, mesh, student, teacher, process, objective, data, vae, say)


def check_data(config: TrainConfig, student: DiTConfig) -> VaeIdentity | None:
    """The model must fit the images or latents of the data set, and its labels. Returns the
    autoencoder of latents; None for pixels."""
    data = config.data
    expected = (*student.image_size, student.in_channels)
    if pipeline.is_latents(data.name, data.data_dir):
        path = Path(data.data_dir, data.name)
        schema = read_schema(path)
        vae = check_vae(data.vae, schema, path)
        shape, classes = schema.latent_shape, len(schema.classes)
        what = f"latents of images of {schema.resolution} x {schema.resolution} pixels,"
    else:
        if data.vae:
            raise ValueError(
                f"data.vae is {data.vae!r}, but data set {data.name!r} holds pixels; leave it"
                " empty, or encode the images first"
            )
        spec = pipeline.dataset_spec(data.name)
        vae, shape, classes, what = None, spec.image_shape, spec.num_classes, "images"
    if shape != expected:
        raise ValueError(
            f"data set {data.name!r} has {what} {shape}, the model takes {expected};"
            " set model.overrides input_size and in_channels"
        )
    if student.num_classes not in (0, classes):
        remedy = f"use {classes}, or 0 for unconditional" if classes else "use 0 (unconditional)"
        raise ValueError(
            f"data set {data.name!r} has {classes or 'no'} classes, the model"
            f" num_classes={student.num_classes}; {remedy}"
        )
    return vae


def check_vae(vae_dir: str, schema: LatentSchema, path: Path) -> VaeIdentity:
    """The autoencoder of the config must be the one that made the latents."""
    stored = from_mapping(VaeIdentity, schema.vae, f"{path}: vae")
    if not vae_dir:
        raise ValueError(
            f"data.vae is empty; give the model folder of the VAE that made {path}: {stored.id}"
            f" (sha256 {stored.sha256[:12]})"
        )
    folder.require_weights(vae_dir)
    vae = vae_identity(vae_dir)
    stored.require_same(vae, f"the latents in {path}", f"data.vae {vae_dir}")
    return vae


def check_teacher(config: TrainConfig, student: DiTConfig) -> DiTConfig | None:
    """The teacher's configuration; its inputs and outputs must be the student's."""
    path = config.distill.teacher
    if not path:
        return None
    folder.require_weights(path)
    teacher = dataclasses.replace(
        folder.read_dit_config(path), dtype=student.dtype, scan_unroll=student.scan_unroll
    )
    for name in ("image_size", "in_channels", "num_classes", "learn_sigma", "null_label"):
        if getattr(teacher, name) != getattr(student, name):
            raise ValueError(
                f"teacher {path} has {name}={getattr(teacher, name)}, the student"
                f" {getattr(student, name)}; distillation compares their outputs"
            )
    return teacher


def check_inheritance(config: TrainConfig, student: DiTConfig) -> None:
    """The source must have what its policy names, in the student's shapes."""
    settings = config.inherit
    folder.require_weights(settings.source)
    source = folder.read_dit_config(settings.source)
    shapes, source_shapes = zoo.abstract_params(student), zoo.abstract_params(source)
    inherited_paths(student, shapes, source, source_shapes, settings.policy, settings.reinitialise)


def check_workdir(workdir: Path, student: DiTConfig) -> None:
    """A workdir of another model is refused: its checkpoints would not fit. So are a model folder,
    whose weights would shadow the run's, and an address that is no path."""
    folder.check_local(workdir, "workdir")
    if (workdir / folder.PARAMS).exists():
        raise ValueError(f"workdir {workdir} is a model folder; choose another workdir")
    if not (workdir / folder.CONFIG).exists():
        return
    found, wanted = architecture(folder.read_config(workdir)), architecture(student)
    differing = [f"{k}={found[k]} (config: {wanted[k]})" for k in wanted if found[k] != wanted[k]]
    if differing:
        raise ValueError(
            f"workdir {workdir} holds a run of another model: {', '.join(differing)};"
            " choose another workdir"
        )


def grid_protocol(config: TrainConfig, student: DiTConfig) -> Protocol:
    """How the grids of a run are drawn: without guidance where the model has no null class."""
    settings = config.sample
    return Protocol(
        sampler=settings.sampler,
        steps=settings.steps,
        cfg_scale=1.0 if student.null_label is None else settings.cfg_scale,
        cfg_channels=settings.cfg_channels,
        seed=config.seed,
    )
