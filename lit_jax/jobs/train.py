"""`python -m lit_jax train`: trains a model, from scratch, from a model folder, or from its own
last checkpoint.

Reads top-down: `train` is the table of contents.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.config import DiTConfig, TrainConfig, architecture
from lit_jax.data import pipeline
from lit_jax.diffusion.gaussian import GaussianProcess
from lit_jax.evaluation import files
from lit_jax.inheritance import inherit, inherited_paths
from lit_jax.jobs.sample import Protocol, draw_grid, load_sharded, make_process
from lit_jax.jobs.sample import check as check_sampling
from lit_jax.models import zoo
from lit_jax.models.cost import train_step_flops
from lit_jax.objectives import Objective, hybrid_objective
from lit_jax.training import checkpoint, metrics
from lit_jax.training.diagnose import first_nonfinite
from lit_jax.training.optimizer import frozen_mask, learning_rate, make_optimizer
from lit_jax.training.state import TrainState, create_state
from lit_jax.training.step import Batch, Metrics, Task, train_step
from lit_jax.weights import folder

Say = Callable[[str], None]
Callback = Callable[[int, TrainState, Metrics, Batch], None]


@dataclass
class Run:
    """What the checks have established, before anything is compiled or written."""

    config: TrainConfig
    workdir: Path
    mesh: Mesh
    student: DiTConfig
    teacher: DiTConfig | None
    process: GaussianProcess
    objective: Objective
    data: Any
    say: Say


def train(config: TrainConfig, workdir: Path | str, say: Say | None = None) -> Path:
    """Trains to `config.total_steps` and returns the workdir. The same call again resumes.

    Raises ValueError for a config that cannot run, before compiling; FloatingPointError when loss
    or gradient stop being finite, with the step and the place; the last checkpoint stays.
    """
    run = check(config, Path(workdir), say or _say_on_first_process)
    teacher = load_teacher(run)
    manager = checkpoint.open_manager(run.workdir, config.keep_checkpoints, config.checkpoint_every)
    try:
        task, state = start(run, manager)
        if (done := int(state.step)) >= config.total_steps:
            run.say(f"nothing to do: total_steps is {config.total_steps}, step {done} is reached")
            return run.workdir
        save_config(run)
        step_fn = compile_step(run, task, state, teacher)
        loop(run, task, manager, step_fn, state, teacher)
    finally:
        manager.wait_until_finished()
        manager.close()
    return run.workdir


def check(config: TrainConfig, workdir: Path, say: Say) -> Run:
    """All that can be refused without touching a device's memory or the workdir."""
    spec = config.model
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
    process = make_process(student, "", config.diffusion.schedule)
    objective = hybrid_objective(process, config.distill)
    learning_rate(config.optimizer, config.total_steps)
    frozen_mask(zoo.abstract_params(student), config.inherit.freeze)
    check_data(config, student)

    teacher = None
    if config.distill.teacher:
        teacher = dataclasses.replace(
            folder.read_config(config.distill.teacher),
            dtype=spec.dtype,
            scan_unroll=spec.scan_unroll,
        )
        for name in ("image_size", "in_channels", "num_classes", "learn_sigma", "null_label"):
            if getattr(teacher, name) != getattr(student, name):
                raise ValueError(
                    f"teacher {config.distill.teacher} has {name}={getattr(teacher, name)}, the"
                    f" student {getattr(student, name)}; distillation compares their outputs"
                )
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
    )
    return Run(config, workdir, mesh, student, teacher, process, objective, data, say)


def check_data(config: TrainConfig, student: DiTConfig) -> None:
    """The model must fit the images and labels of the data set."""
    spec = pipeline.dataset_spec(config.data.name)
    expected = (*student.image_size, student.in_channels)
    if spec.image_shape != expected:
        raise ValueError(
            f"data set {config.data.name!r} has images {spec.image_shape}, the model takes"
            f" {expected}; set model.overrides input_size and in_channels"
        )
    if student.num_classes not in (0, spec.num_classes):
        raise ValueError(
            f"data set {config.data.name!r} has {spec.num_classes} classes, the model"
            f" num_classes={student.num_classes}; use {spec.num_classes}, or 0 for unconditional"
        )


def check_inheritance(config: TrainConfig, student: DiTConfig) -> None:
    """The source must have what its policy names, in the student's shapes."""
    settings = config.inherit
    source = folder.read_config(settings.source)
    shapes, source_shapes = zoo.abstract_params(student), zoo.abstract_params(source)
    inherited_paths(student, shapes, source, source_shapes, settings.policy, settings.reinitialise)


def check_workdir(workdir: Path, student: DiTConfig) -> None:
    """A workdir of another model is refused: its checkpoints would not fit."""
    if not (workdir / folder.CONFIG).exists():
        return
    found, wanted = architecture(folder.read_config(workdir)), architecture(student)
    differing = [f"{k}={found[k]} (config: {wanted[k]})" for k in wanted if found[k] != wanted[k]]
    if differing:
        raise ValueError(
            f"workdir {workdir} holds a run of another model: {', '.join(differing)};"
            " choose another workdir"
        )


def load_teacher(run: Run) -> Any:
    """The teacher's parameters, straight into their shardings; {} without distillation."""
    if run.teacher is None:
        return {}
    run.say(f"teacher: {run.config.distill.teacher}")
    return load_sharded(run.config.distill.teacher, run.mesh)[1]


def start(run: Run, manager: Any) -> tuple[Task, TrainState]:
    """The task and its first state. Where the parameters come from, in this order:

    1. a checkpoint in the workdir: the run is resumed, data position included;
    2. `inherit.source`: the parameters its policy names come from that model folder;
    3. otherwise: initialised from the seed.
    """
    config = run.config
    abstract = zoo.abstract_params(run.student)
    frozen = frozen_mask(abstract, config.inherit.freeze)
    optimizer = make_optimizer(config.optimizer, config.total_steps, frozen)
    task = Task(
        student=zoo.apply_fn(run.student),
        teacher=None if run.teacher is None else zoo.apply_fn(run.teacher),
        process=run.process,
        objective=run.objective,
        optimizer=optimizer,
        ema=config.ema,
        accumulation=config.optimizer.accumulation,
        null_label=run.student.null_label,
        label_dropout=run.student.class_dropout_prob,
        seed=config.seed,
    )
    abstract_state = jax.eval_shape(lambda p: create_state(p, optimizer), abstract)
    shardings = sharding.tree_shardings(abstract_state, run.mesh)

    if manager.latest_step() is not None:
        abstract_state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract_state,
            shardings,
        )
        state = checkpoint.restore(manager, abstract_state, run.data, config)
        run.say(f"resumed at step {int(state.step)} from {run.workdir / checkpoint.FOLDER}")
        return task, state

    init = functools.partial(zoo.init_params, run.student)
    params = jax.jit(init, out_shardings=shardings.params)(jax.random.key(config.seed))
    if config.inherit.source:
        params = inherit_params(run, params)
    else:
        run.say(f"from scratch: {zoo.count_params(params):,} parameters, seed {config.seed}")
    make_state = jax.jit(lambda p: create_state(p, optimizer), out_shardings=shardings)
    return task, make_state(params)


def inherit_params(run: Run, params: Any) -> Any:
    """Applies the inheritance policy; prints the report and saves it in the workdir."""
    settings = run.config.inherit
    source, source_params = load_sharded(settings.source, run.mesh)
    params, report = inherit(
        run.student,
        params,
        source,
        source_params,
        settings.policy,
        reinitialise=settings.reinitialise,
        freeze=settings.freeze,
    )
    run.say(f"inherited from {settings.source} with policy {settings.policy!r}\n{report.table()}")
    if jax.process_index() == 0:
        files.write_text(run.workdir / "inheritance.json", report.to_json() + "\n")
    return params


def save_config(run: Run) -> None:
    """`config.json` of the workdir: the architecture, and the whole experiment."""
    if jax.process_index() == 0:
        content = {
            "model": architecture(run.student),
            "provenance": {"job": "train"},
            "train": dataclasses.asdict(run.config),
        }
        files.write_text(run.workdir / folder.CONFIG, json.dumps(content, indent=2) + "\n")


def compile_step(run: Run, task: Task, state: TrainState, teacher: Any) -> Callable[..., Any]:
    """The step, compiled ahead of the loop; prints how long it took and the memory it needs."""
    shape = (run.config.batch_size, *run.student.image_size, run.student.in_channels)
    place = sharding.batch_sharding(run.mesh)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=place),
    }
    if not run.student.num_classes:
        del batch["label"]
    step = jax.jit(
        functools.partial(train_step, task),
        donate_argnums=0,
        out_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, state),
            sharding.replicated(run.mesh),
        ),
    )
    began = time.perf_counter()
    compiled = step.lower(state, teacher, batch).compile()
    text = f"compiled the step in {time.perf_counter() - began:.1f} s: mesh {dict(run.mesh.shape)}"
    if (memory := compiled.memory_analysis()) is not None:
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        text += f", {needed / 2**30:.2f} GiB per device"
    run.say(text)
    return compiled


def loop(
    run: Run, task: Task, manager: Any, step_fn: Callable[..., Any], state: TrainState, teacher: Any
) -> None:
    """Steps until the end or a request to stop, with everything else in the callbacks."""
    config, start_step = run.config, int(state.step)
    stop = _StopRequest()

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
            batch = next(run.data)
            if not run.student.num_classes:
                batch = {"image": batch["image"]}
            batch = sharding.place_batch(batch, run.mesh)
            state, values = step_fn(state, teacher, batch)
            stop.agreed = stop.requested  # once per step: every callback sees the same answer
            for callback in callbacks:
                callback(step, state, values, batch)
            if stop.agreed:
                run.say(f"stopped on request after step {step}; the same command resumes there")
                break
    finally:
        writer.close()
        stop.restore()


def report_and_guard(
    run: Run,
    task: Task,
    writer: metrics.Writer,
    clock: metrics.Clock,
    teacher: Any,
    due: Callable[[int], bool],
) -> Callback:
    """Looks at the numbers of a step after the next one was dispatched, so nothing waits.

    Except where a checkpoint is `due`: it must not hold a failed step, nor be ahead of the trace.
    """
    config = run.config
    pending: list[tuple[int, Metrics, Batch]] = []
    rate = learning_rate(config.optimizer, config.total_steps)

    def look(state: TrainState) -> None:
        step, values, batch = pending.pop()
        if not bool(values["finite"]):
            where = first_nonfinite(task, run.student, state.params, teacher, step - 1, batch)
            raise FloatingPointError(
                f"step {step}: loss {float(values['loss'])}, gradient norm"
                f" {float(values['gradient_norm'])}; first non-finite value in {where}."
                f" The last checkpoint in {run.workdir / checkpoint.FOLDER} is kept"
            )
        if step % config.log_every == 0 or step == config.total_steps:
            numbers = {k: float(v) for k, v in values.items() if k != "finite"}
            numbers["learning_rate"] = float(rate(step - 1))
            timing = clock.measure(step)
            writer.scalars(step, numbers, timing)
            run.say(metrics.progress_line(step, config.total_steps, numbers, timing))

    def callback(step: int, state: TrainState, values: Metrics, batch: Batch) -> None:
        if pending:
            look(state)
        pending.append((step, values, batch))
        if due(step):
            look(state)

    return callback


def save_checkpoints(run: Run, manager: Any, due: Callable[[int], bool]) -> Callback:
    """Saves when due: now and then, at the end, and before a requested stop."""

    def callback(step: int, state: TrainState, values: Metrics, batch: Batch) -> None:
        if due(step):
            checkpoint.save(manager, state, run.data, run.config, step, force=True)

    return callback


def grid_protocol(config: TrainConfig, student: DiTConfig) -> Protocol:
    """How the grids of a run are drawn: without guidance where the model has no null class."""
    settings = config.sample
    return Protocol(
        sampler=settings.sampler,
        steps=settings.steps,
        cfg_scale=1.0 if student.null_label is None else settings.cfg_scale,
        cfg_channels=settings.cfg_channels,
        seed=config.seed,
        schedule=config.diffusion.schedule,
    )


def draw_samples(run: Run, writer: metrics.Writer, clock: metrics.Clock) -> Callback:
    """Every `sample.every` steps: a grid from the EMA parameters, to TensorBoard and `samples/`."""
    settings = run.config.sample
    protocol = grid_protocol(run.config, run.student)

    def callback(step: int, state: TrainState, values: Metrics, batch: Batch) -> None:
        if settings.every and step % settings.every == 0:
            path = run.workdir / "samples" / f"{step:07d}.png"
            jax.block_until_ready(values)
            with clock.paused():
                grid = draw_grid(run.student, state.ema, protocol, settings.count, run.mesh, path)
                writer.images(step, "samples", grid)

    return callback


class _StopRequest:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint."""

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False
        self._previous = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: whoever runs it handles signals
                return

    def _request(self, number: int, frame: Any) -> None:
        if self.requested:  # asked twice: do not make the person wait
            raise KeyboardInterrupt
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _say_on_first_process(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
