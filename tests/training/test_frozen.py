"""Frozen parameters: no gradient, no update, and the step of the others unchanged."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lit_jax.training.state import create_state
from lit_jax.training.step import (
    mean_gradient,
    noised_example,
    train_step,
)
from support.step_cases import MakeTask, steps


def test_frozen_parameters_have_no_gradient(
    make_task: MakeTask, params: Any, teacher_params: Any, batch: Any
) -> None:
    """It is not computed; the others have theirs."""
    free = make_task(distilled=True)
    frozen = dataclasses.replace(free, frozen=("^labels$", "bias"))
    example = jax.eval_shape(lambda: noised_example(free, jnp.int32(0), batch, {}))
    found = [
        jax.make_jaxpr(functools.partial(mean_gradient, task), return_shape=True)(
            params, teacher_params, example
        )
        for task in (free, frozen)
    ]
    shapes = [{name: leaf for name, leaf in out[0].items() if leaf} for _, out in found]
    assert list(shapes[0]) == ["bias", "kernel", "labels"] and list(shapes[1]) == ["kernel"]
    # The gradient of a table that is read with indices.
    assert ["scatter-add" in str(program) for program, _ in found] == [True, False]


def test_frozen_parameters_and_their_average_stay_bit_for_bit(
    make_task: MakeTask, params: Any, teacher_params: Any, batch: Any
) -> None:
    """Whatever the optimiser does with all others, and whatever their average is."""
    frozen = ("labels", "bias")
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    task = make_task(distilled=True, frozen=frozen, optimizer=optimizer, accumulation=2)
    state = create_state(jax.tree.map(jnp.asarray, params), optimizer)
    start = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
    new, metrics = jax.jit(functools.partial(train_step, task))(start, teacher_params, batch)
    assert metrics["finite"]
    for name in params:
        for part in ("params", "ema"):
            before, after = (np.asarray(getattr(of, part)[name]) for of in (start, new))
            assert (before.tobytes() == after.tobytes()) == (name in frozen), (part, name)


def test_frozen_step_is_the_step_of_the_others(
    make_task: MakeTask, params: Any, batch: Any
) -> None:
    """As if the frozen parameters were constants of the network."""
    constant = {"labels": jnp.asarray(params["labels"])}
    inner = make_task().student

    def network(part: Any, *inputs: Any) -> jax.Array:
        return inner(constant | part, *inputs)

    rest = {name: leaf for name, leaf in params.items() if name != "labels"}
    (frozen, metrics), *_ = steps(make_task(frozen=("labels",)), params, {}, batch, 1)
    (expected, wanted), *_ = steps(make_task(student=network), rest, {}, batch, 1)
    for name in rest:
        np.testing.assert_allclose(frozen.params[name], expected.params[name], rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], wanted["gradient_norm"], rtol=1e-6)
