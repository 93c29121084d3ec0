"""The training step: what is random, what changes, what a failed step leaves alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lit_jax.config import EmaConfig
from lit_jax.models import functional, registry
from lit_jax.training.batch import labels
from lit_jax.training.state import TrainState, create_state
from lit_jax.training.step import (
    loss_and_metrics,
    mean_gradient,
    noised_example,
    train_step,
)
from support import tiny_runs
from support.step_cases import MakeTask, assert_bitwise, steps


def test_loss_falls_and_metrics_are_the_terms(
    make_task: MakeTask, params: Any, teacher_params: Any, batch: Any
) -> None:
    found = steps(
        make_task(distilled=True, condition_of=labels(10, 0.0)), params, teacher_params, batch, 80
    )
    terms = found[0][1]
    expected = {"mse", "vb", "noise_distillation", "variance_distillation"}
    assert set(terms) == expected | {"loss", "gradient_norm", "parameter_norm", "finite"}
    total = terms["mse"] + terms["vb"]
    total += 0.5 * terms["noise_distillation"] + 0.05 * terms["variance_distillation"]
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-6)
    losses = [float(metrics["loss"]) for _, metrics in found]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert int(found[-1][0].step) == 80


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_one_batch(
    make_task: MakeTask, params: Any, teacher_params: Any, batch: Any, parts: int
) -> None:
    whole = make_task(distilled=True, optimizer=optax.sgd(0.1))
    split = dataclasses.replace(whole, accumulation=parts)
    (a, whole_metrics), (b, split_metrics) = (
        steps(task, params, teacher_params, batch, 1)[0] for task in (whole, split)
    )
    for name in params:
        np.testing.assert_allclose(a.params[name], b.params[name], rtol=1e-6, atol=1e-7)
        assert not np.array_equal(a.params[name], params[name])
    assert set(whole_metrics) == set(split_metrics)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=1e-6)


def test_accumulation_sees_one_part_at_a_time(make_task: MakeTask, params: Any, batch: Any) -> None:
    """Otherwise it would save no memory."""
    seen = []

    def network(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        seen.append(x.shape[0])
        return make_task().student(params, x, t, label)

    task = make_task(student=network, accumulation=4)
    example = noised_example(task, jnp.int32(0), batch, {})
    jax.eval_shape(lambda p: mean_gradient(task, p, {}, example), params)
    assert set(seen) == {2}


@pytest.mark.parametrize("warmup", [False, True])
def test_ema(make_task: MakeTask, params: Any, batch: Any, warmup: bool) -> None:
    found = steps(make_task(ema=EmaConfig(decay=0.3, warmup=warmup)), params, {}, batch, 5)
    expected = {name: value.astype(np.float64) for name, value in params.items()}
    for index, (state, _) in enumerate(found):
        decay = min(0.3, (1 + index) / (10 + index)) if warmup else 0.3
        for name in expected:
            new = np.asarray(state.params[name], np.float64)
            expected[name] = decay * expected[name] + (1 - decay) * new
            np.testing.assert_allclose(state.ema[name], expected[name], rtol=1e-5, atol=1e-6)
            assert state.ema[name].dtype == jnp.float32


def test_state_starts_with_a_copy(params: Any) -> None:
    state = create_state(jax.tree.map(jnp.asarray, params), optax.sgd(0.1))
    assert_bitwise(state.params, state.ema)
    for name in params:  # donating one must not take the other along
        pointers = {tree[name].unsafe_buffer_pointer() for tree in (state.params, state.ema)}
        assert len(pointers) == 2


def test_teacher_gets_no_gradient(
    make_task: MakeTask, params: Any, teacher_params: Any, batch: Any
) -> None:
    task = make_task(distilled=True)
    example = noised_example(task, jnp.int32(0), batch, {})

    def loss(params: Any, teacher: Any) -> jax.Array:
        return loss_and_metrics(task, params, teacher, example)[0]

    own, taught = jax.grad(loss, argnums=(0, 1))(params, teacher_params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(taught))
    assert loss(params, teacher_params) != loss(params, params)  # though the loss depends on it


def test_same_seed_is_bitwise_the_same(make_task: MakeTask, params: Any, batch: Any) -> None:
    first, again, other = (steps(make_task(seed=seed), params, {}, batch, 3) for seed in (5, 5, 6))
    assert_bitwise(first, again)
    losses = [[float(metrics["loss"]) for _, metrics in found] for found in (first, other)]
    assert len({*losses[0], *losses[1]}) == 6  # every step and every seed has noise of its own


def nan_batch(batch: Any) -> Any:
    image = batch["image"].copy()
    image[3, 0, 0, 0] = np.nan
    return batch | {"image": image}


def nan_gradient(*_: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A loss of zero whose gradient is 0 * inf."""
    loss = jnp.sqrt(jnp.sum(0 * _[0]))
    return loss, {"loss": loss}


@pytest.mark.parametrize("case", ["batch", "gradient"])
def test_failed_step_changes_nothing(
    make_task: MakeTask, params: Any, batch: Any, case: str
) -> None:
    good = steps(make_task(), params, {}, batch, 1)[0][0]
    task = make_task(objective=nan_gradient) if case == "gradient" else make_task()
    bad_batch = nan_batch(batch) if case == "batch" else batch
    bad, metrics = train_step(task, good, {}, bad_batch)
    assert not metrics["finite"]
    assert bool(jnp.isfinite(metrics["loss"])) == (case == "gradient")
    for part in ("params", "ema", "opt_state"):
        assert_bitwise(getattr(bad, part), getattr(good, part))
    assert int(bad.step) == int(good.step) + 1


def test_bfloat16_trains_float32_parameters(make_task: MakeTask) -> None:
    config = registry.model_config("LiT", kernel_size=3, **tiny_runs.SIZE)
    params = tiny_runs.random_params(config)
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32),
        "label": generator.integers(0, 10, 8).astype(np.int32),
    }
    half = dataclasses.replace(config, dtype="bfloat16")
    task = make_task(student=functional.apply_fn(half), optimizer=optax.sgd(1e-3, momentum=0.9))
    found = steps(task, params, {}, batch, 3)
    assert all(bool(metrics["finite"]) for _, metrics in found)
    state: TrainState = found[-1][0]
    for part in (state.params, state.ema, state.opt_state):
        assert {leaf.dtype for leaf in jax.tree.leaves(part)} == {jnp.dtype(jnp.float32)}
    assert not np.array_equal(state.params["x_embedder"]["bias"], params["x_embedder"]["bias"])

    example = noised_example(task, jnp.int32(0), batch, {})
    exact = dataclasses.replace(task, student=functional.apply_fn(config))
    full = float(jax.jit(lambda p: loss_and_metrics(exact, p, {}, example)[0])(params))
    difference = abs(float(found[0][1]["loss"]) / full - 1)
    assert 1e-6 < difference < 0.02  # computed in half precision, and yet right
