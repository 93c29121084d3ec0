"""`python -m lit_jax train`: trains a model, from scratch, from a model folder, or from its own
last checkpoint.

Reads top-down: `train` is the table of contents.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lit_jax import sharding
from lit_jax.checkpoints.identity import TEXT_ENCODER, VAE
from lit_jax.checkpoints.stored import CONFIG
from lit_jax.commands.train.callbacks import (
    StopRequest,
    draw_samples,
    report_and_guard,
    save_checkpoints,
)
from lit_jax.commands.train.checks import Run, check
from lit_jax.config import TrainConfig
from lit_jax.inheritance import inherit
from lit_jax.models import functional
from lit_jax.models.cost import train_step_flops
from lit_jax.models.family import architecture
from lit_jax.models.registry import roles_of
from lit_jax.runs.hosts import Log, log_on_first_process
from lit_jax.runs.lock import locked
from lit_jax.storage import files
from lit_jax.training import checkpoint, metrics
from lit_jax.training.batch import Batch, condition_of
from lit_jax.training.optimizer import frozen_mask, make_optimizer
from lit_jax.training.state import TrainState, create_state
from lit_jax.training.step import Task, train_step


def train(config: TrainConfig, workdir: Path | str, log: Log | None = None) -> Path:
    """Train to `config.total_steps` and return the workdir. The same call again resumes.

    Raises ValueError for a config that cannot run, before compiling; FloatingPointError when loss
    or gradient stop being finite, with the step and the place; the last checkpoint stays.
    """
    run = check(config, Path(workdir), log or log_on_first_process)
    with locked(run.workdir, run.log):
        return train_locked(run)


def train_locked(run: Run) -> Path:
    """Train while no other job works in the workdir."""
    config = run.config
    teacher = load_teacher(run)
    manager = checkpoint.open_manager(run.workdir, config.keep_checkpoints, config.checkpoint_every)
    try:
        task, state = start(run, manager, teacher)
        if (done := int(state.step)) >= config.total_steps:
            run.log(f"nothing to do: total_steps is {config.total_steps}, step {done} is reached")
            return run.workdir
        save_config(run)
        step_fn = compile_step(run, task, state, teacher)
        loop(run, task, manager, step_fn, state, teacher)
    finally:
        try:
            manager.wait_until_finished()
            manager.close()
        finally:
            run.data.close()
    return run.workdir


def load_teacher(run: Run) -> Any:
    """Return the teacher's parameters, straight into their shardings; {} without distillation."""
    if run.teacher_folder is None:
        return {}
    run.log(f"teacher: {run.config.distill.teacher}")
    return run.teacher_folder.params(run.mesh)


def start(run: Run, manager: Any, teacher: Any) -> tuple[Task, TrainState]:
    """Return the task and its first state. Where the parameters come from, in this order:

    1. a checkpoint in the workdir: the run is resumed, data position included;
    2. `inherit.source`: the parameters its policy names come from that model folder;
    3. otherwise: initialised from the seed.
    """
    config = run.config
    abstract = functional.abstract_params(run.student)
    frozen = (*config.inherit.freeze, *functional.buffer_paths(run.student))
    mask = frozen_mask(abstract, frozen)
    optimizer = make_optimizer(config.optimizer, config.total_steps, mask, run.student)
    method = "with_attention" if config.distill.compares_attention else "__call__"
    task = Task(
        student=functional.apply_fn(run.student, method),
        teacher=None if run.teacher is None else functional.apply_fn(run.teacher, method),
        process=run.process,
        objective=run.objective,
        optimizer=optimizer,
        ema=config.ema,
        accumulation=config.optimizer.accumulation,
        seed=config.seed,
        condition_of=condition_of(run.student),
        start_of=run.info.start_of,
        frozen=frozen,
    )
    abstract_state = jax.eval_shape(lambda p: create_state(p, optimizer), abstract)
    shardings = functional.shardings(run.student, run.mesh, abstract_state)

    if manager.latest_step() is not None:
        abstract_state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract_state,
            shardings,
        )
        state = checkpoint.restore(manager, abstract_state, run.data, config)
        run.log(f"resumed at step {int(state.step)} from {run.workdir / checkpoint.FOLDER}")
        return task, state

    init = functools.partial(functional.init_params, run.student)
    params = jax.jit(init, out_shardings=shardings.params)(jax.random.key(config.seed))
    if run.source is not None:
        params = inherit_params(run, params, teacher)
    else:
        run.log(f"from scratch: {functional.count_params(params):,} parameters, seed {config.seed}")
    params = with_null_caption(run, params)
    make_state = jax.jit(lambda p: create_state(p, optimizer), out_shardings=shardings)
    return task, make_state(params)


def with_null_caption(run: Run, params: Any) -> Any:
    """Return the parameters with the encoding of the empty prompt in the place of the null caption,
    as the official training code has it; unchanged without captions."""
    null_LxC = run.info.null_caption_LxC
    if null_LxC is None:
        return params
    path = roles_of(run.student).null_caption
    place = functional.parameter(params, path).sharding
    null = jax.make_array_from_callback(null_LxC.shape, place, null_LxC.__getitem__)
    return functional.with_parameter(params, path, null)


def inherit_params(run: Run, params: Any, teacher: Any) -> Any:
    """Apply the inheritance policy; print the report and save it in the workdir."""
    settings = run.config.inherit
    assert run.source is not None
    source: Any = run.source.config
    if run.teacher_folder is not None and run.source.path == run.teacher_folder.path:
        # A copy: the step donates the student's parameters, the teacher's stay.
        source_params = jax.tree.map(jnp.copy, teacher)
    else:
        source_params = run.source.params(run.mesh)
    params, report = inherit(
        run.student,
        params,
        source,
        source_params,
        settings.policy,
        reinitialise=settings.reinitialise,
        freeze=(*settings.freeze, *functional.buffer_paths(run.student)),
    )
    run.log(f"inherited from {settings.source} with policy {settings.policy!r}\n{report.table()}")
    if jax.process_index() == 0:
        files.write_text(run.workdir / "inheritance.json", report.to_json() + "\n")
    return params


def save_config(run: Run) -> None:
    """`config.json` of the workdir: the architecture, the whole experiment, the autoencoder whose
    latents the model draws, and the text encoder it listens to."""
    if jax.process_index() == 0:
        content = {
            "model": architecture(run.student),
            "provenance": {"job": "train"},
            "train": dataclasses.asdict(run.config),
        }
        origins = {VAE: run.info.vae, TEXT_ENCODER: run.info.text_encoder}
        for entry, identity in origins.items():
            if identity is not None:
                content[entry] = dataclasses.asdict(identity)
        files.write_text(run.workdir / CONFIG, json.dumps(content, indent=2) + "\n")


def compile_step(run: Run, task: Task, state: TrainState, teacher: Any) -> Callable[..., Any]:
    """Return the step, compiled ahead of the loop for the first shape of a batch and for the
    others, such as those of other aspect ratios, when they come; print the time it took and the
    memory."""
    step = jax.jit(
        functools.partial(train_step, task),
        donate_argnums=0,
        out_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, state),
            sharding.replicated(run.mesh),
        ),
    )
    place = sharding.batch_sharding(run.mesh)

    @functools.cache
    def compiled(*arrays: tuple[str, tuple[int, ...], Any]) -> Callable[..., Any]:
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
            for name, shape, dtype in arrays
        }
        began = time.perf_counter()
        program = step.lower(state, teacher, batch).compile()
        text = f"compiled the step in {time.perf_counter() - began:.1f} s: mesh"
        text += f" {dict(run.mesh.shape)}, "
        text += ", ".join(f"{name} {list(shape)}" for name, shape, _ in arrays)
        if (memory := program.memory_analysis()) is not None:
            needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            text += f", {needed / 2**30:.2f} GiB per device"
        run.log(text)
        return program

    def run_step(state: TrainState, teacher: Any, batch: Batch) -> Any:
        shapes = sorted((name, leaf.shape, leaf.dtype) for name, leaf in batch.items())
        return compiled(*shapes)(state, teacher, batch)

    compiled(*sorted((name, *of_array) for name, of_array in run.data.arrays.items()))
    return run_step


def loop(
    run: Run, task: Task, manager: Any, step_fn: Callable[..., Any], state: TrainState, teacher: Any
) -> None:
    """Step until the end or a request to stop, with everything else in the callbacks."""
    config, start_step = run.config, int(state.step)
    stop = StopRequest()

    def due(step: int) -> bool:
        every = config.checkpoint_every
        return stop.agreed or step == config.total_steps or step % every == 0

    writer = metrics.Writer(run.workdir, start_step)
    clock = metrics.Clock(
        start_step,
        config.total_steps,
        config.batch_size,
        train_step_flops(run.student, config.batch_size, run.teacher),
    )
    callbacks = [
        report_and_guard(run, task, writer, clock, teacher, due),
        save_checkpoints(run, manager, due),
        draw_samples(run, writer, clock),
    ]
    try:
        for step in range(start_step + 1, config.total_steps + 1):
            batch = sharding.place_batch(next(run.data), run.mesh)
            state, values = step_fn(state, teacher, batch)
            stop.agree(step, config.log_every)
            for callback in callbacks:
                callback(step, state, values, batch)
            if stop.agreed:
                run.log(f"stopped on request after step {step}; the same command resumes there")
                break
    finally:
        writer.close()
        stop.restore()
