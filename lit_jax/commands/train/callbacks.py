"""Callbacks of the training loop: logging, the guard against NaN, checkpoints, samples and a
request to stop. Each is called after every step and decides by its own interval."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lit_jax.commands.train.checks import Run
from lit_jax.commands.train.grids import grid_drawer
from lit_jax.training import checkpoint, metrics
from lit_jax.training.batch import Batch
from lit_jax.training.diagnose import first_nonfinite
from lit_jax.training.optimizer import learning_rate
from lit_jax.training.state import TrainState
from lit_jax.training.step import Metrics, Task

Callback = Callable[[int, TrainState, Metrics, Batch], None]


def report_and_guard(
    run: Run,
    task: Task,
    writer: metrics.Writer,
    clock: metrics.Clock,
    teacher: Any,
    due: Callable[[int], bool],
) -> Callback:
    """Look at the numbers of a step after the next one was dispatched, so nothing waits.

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
            run.log(metrics.progress_line(step, config.total_steps, numbers, timing))

    def callback(step: int, state: TrainState, values: Metrics, batch: Batch) -> None:
        if pending:
            look(state)
        pending.append((step, values, batch))
        if due(step):
            look(state)

    return callback


def save_checkpoints(run: Run, manager: Any, due: Callable[[int], bool]) -> Callback:
    """Save when due: now and then, at the end, and before a requested stop."""

    def callback(step: int, state: TrainState, values: Metrics, batch: Batch) -> None:
        if due(step):
            checkpoint.save(manager, state, run.data, run.config, step, force=True)

    return callback


def draw_samples(run: Run, writer: metrics.Writer, clock: metrics.Clock) -> Callback:
    """Return every `sample.every` steps: a grid from the EMA parameters, to TensorBoard and
    `samples/`. Latents are decoded by the VAE of the data."""
    settings = run.config.sample
    if not settings.every:
        return lambda step, state, values, batch: None
    folder = run.info.vae_folder
    vae: Any = None if folder is None else (folder.config, folder.params(run.mesh))
    draw = grid_drawer(run.config, run.student, run.info, run.mesh, vae)

    def callback(step: int, state: TrainState, values: Metrics, batch: Batch) -> None:
        if step % settings.every == 0:
            path = run.workdir / "samples" / f"{step:07d}.png"
            jax.block_until_ready(values)
            with clock.paused():
                grid = draw(state.ema, path)
                if grid is None:
                    run.log(f"samples at step {step} are not finite: no grid")
                else:
                    writer.images(step, "samples", grid)

    return callback


class StopRequest:
    """SIGTERM and Ctrl-C end the run after a step, with a checkpoint.

    `requested` is what this process was told, `agreed` what all processes do: a checkpoint needs
    every one of them at the same step.
    """

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

    def agree(self, step: int, every: int) -> None:
        """Settle `agreed` for this step. Several processes ask each other every `every` steps."""
        if jax.process_count() == 1:
            self.agreed = self.requested
        elif step % every == 0:
            asked = multihost_utils.process_allgather(np.asarray(self.requested))
            self.agreed = bool(np.any(asked))

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
