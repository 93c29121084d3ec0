"""One training step as a pure function of (task, state, teacher, batch)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lit_jax.config import EmaConfig
from lit_jax.diffusion.gaussian import GaussianProcess, q_sample
from lit_jax.training.batch import Batch, ConditionOf, StartOf, pixels
from lit_jax.training.optimizer import ema_decay, frozen_mask, update_ema
from lit_jax.training.state import TrainState

Example = dict[str, Any]
Metrics = dict[str, jax.Array]
Apply = Callable[..., Any]
Objective = Callable[..., tuple[jax.Array, Metrics]]


@dataclass(frozen=True)
class Task:
    """The static half of a step. `teacher` is None when nothing is distilled.

    `start_of(batch, key of the step)` is the clean x_start; `condition_of(batch, key, parameters of
    the student)` is what both networks are conditioned on. See `training.batch` for either.
    What the networks return is what `objective` takes. `frozen` are regular expressions of the
    parameters that stay as they are; each must match one.
    """

    student: Apply
    teacher: Apply | None
    process: GaussianProcess
    objective: Objective
    optimizer: optax.GradientTransformation
    ema: EmaConfig
    accumulation: int
    seed: int
    condition_of: ConditionOf
    start_of: StartOf = pixels
    frozen: tuple[str, ...] = ()


def noised_example(task: Task, step: jax.Array, batch: Batch, params: Any) -> Example:
    """Return everything random of a step, a function of (seed, step, position in the batch) alone.

    x_start, noise and x_t [B, H, W, C], t int [B] uniform in 0..999, and cond, the labels or
    captions after dropout. Dropout is here and not in the model, so that teacher and student are
    conditioned alike.
    """
    key = jax.random.fold_in(jax.random.key(task.seed), step)
    key_t, key_noise, key_drop = jax.random.split(key, 3)
    x_start = task.start_of(batch, key)
    t_B = jax.random.randint(key_t, x_start.shape[:1], 0, task.process.num_steps)
    noise = jax.random.normal(key_noise, x_start.shape, jnp.float32)
    return {
        "x_start": x_start,
        "t": t_B,
        "noise": noise,
        "x_t": q_sample(task.process, x_start, t_B, noise),
        "cond": task.condition_of(batch, key_drop, params),
    }


def loss_and_metrics(
    task: Task, params: Any, teacher: Any, example: Example
) -> tuple[jax.Array, Metrics]:
    """Return the objective on one (micro-)batch: student and teacher on the same (x_t, t, cond)."""
    inputs = (example["x_t"], example["t"], example["cond"])
    student_out = task.student(params, *inputs)
    teacher_out = None if task.teacher is None else task.teacher(teacher, *inputs)
    return task.objective(
        student_out, teacher_out, example["x_start"], example["x_t"], example["t"], example["noise"]
    )


def choose(mask: Any, where: Any, elsewhere: Any) -> Any:
    """Return the leaves of `where` that `mask` names, all others of `elsewhere`. Whole leaves:
    nothing is computed, and a leaf may be None."""
    return jax.tree.map(lambda first, a, b: a if first else b, mask, where, elsewhere)


def mean_gradient(task: Task, params: Any, teacher: Any, example: Example) -> tuple[Any, Metrics]:
    """Return gradient and metrics over the batch, in `accumulation` micro-batches one after the
    other.

    A frozen parameter has no gradient: None in its place, which is no leaf. Row b belongs to
    micro-batch b mod accumulation, so that rows stay on their device.
    """
    frozen = frozen_mask(params, task.frozen)
    trained = choose(frozen, jax.tree.map(lambda _: None, params), params)

    def loss_of(trained: Any, micro: Example) -> tuple[jax.Array, Metrics]:
        return loss_and_metrics(task, choose(frozen, params, trained), teacher, micro)

    def one(micro: Example) -> tuple[Any, Metrics]:
        (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(trained, micro)
        return gradient, metrics | {"loss": loss}

    if task.accumulation == 1:
        return one(example)

    parts = task.accumulation
    micros = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), example
    )
    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype),
        jax.eval_shape(one, jax.tree.map(lambda a: a[0], micros)),
    )
    total, _ = jax.lax.scan(
        lambda total, micro: (jax.tree.map(jnp.add, total, one(micro)), None), zero, micros
    )
    return jax.tree.map(lambda a: a / parts, total)


def train_step(
    task: Task, state: TrainState, teacher: Any, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Return one optimiser step and one EMA update. Frozen parameters and their EMA stay bit for
    bit.

    A step whose loss or gradient is not finite leaves the state as it was (only the step counter
    moves) and reports `finite` = False, so that the caller can stop and diagnose it.
    """
    example = noised_example(task, state.step, batch, state.params)
    gradient, metrics = mean_gradient(task, state.params, teacher, example)
    frozen = frozen_mask(state.params, task.frozen)
    # The optimiser wants the whole tree; nobody reads the zeros.
    whole = choose(frozen, jax.tree.map(jnp.zeros_like, state.params), gradient)
    updates, opt_state = task.optimizer.update(whole, state.opt_state, state.params)
    params = choose(frozen, state.params, optax.apply_updates(state.params, updates))
    decay = ema_decay(task.ema, state.step)
    ema = choose(frozen, state.ema, update_ema(state.ema, params, decay))

    gradient_norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm)
    new = TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
    old = dataclasses.replace(state, step=state.step + 1)
    state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    return state, metrics | {
        "gradient_norm": gradient_norm,
        "parameter_norm": optax.tree.norm(params),
        "finite": finite,
    }
