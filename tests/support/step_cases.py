"""Runs of the training step, and their comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.training.state import create_state
from lit_jax.training.step import Task, train_step

MakeTask = Callable[..., Task]


def steps(task: Task, params: Any, teacher: Any, batch: Any, count: int) -> list[Any]:
    """(state, metrics) after each of `count` steps on the same batch."""
    step = jax.jit(functools.partial(train_step, task))
    state, found = create_state(jax.tree.map(jnp.asarray, params), task.optimizer), []
    for _ in range(count):
        state, metrics = step(state, teacher, batch)
        found.append((state, metrics))
    return found


def assert_bitwise(first: Any, second: Any) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
