"""The training step: what is random, what changes, what a failed step leaves alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lit_jax.config import EmaConfig
from lit_jax.models import functional, registry
from lit_jax.models.conditions import TextCondition
from lit_jax.training.batch import LATENT_KEY, captions, labels, latents
from lit_jax.training.state import TrainState, create_state
from lit_jax.training.step import (
    Task,
    loss_and_metrics,
    mean_gradient,
    noised_example,
    train_step,
)
from support import tiny_runs

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


def test_label_dropout(make_task: MakeTask) -> None:
    classes = np.tile(np.arange(10, dtype=np.int32), 2000)
    batch = {"image": np.zeros((len(classes), 1, 1, 1), np.float32), "label": classes}

    def after(step: int, **changes: Any) -> np.ndarray:
        example = noised_example(make_task(**changes), jnp.int32(step), batch, {})
        return np.asarray(example["cond"])

    found = after(0)
    dropped = found == 10
    assert abs(dropped.mean() - 0.1) < 0.01  # 0.1 +- 0.002 (one standard deviation)
    np.testing.assert_array_equal(found[~dropped], classes[~dropped])
    assert np.any(dropped != (after(1) == 10))
    np.testing.assert_array_equal(after(0, condition_of=labels(None, 0.1)), classes)
    np.testing.assert_array_equal(after(0, condition_of=labels(10, 0.0)), classes)


def test_caption_dropout(make_task: MakeTask) -> None:
    """Dropped captions become the null caption of the student, under their own mask."""
    generator = np.random.default_rng(0)
    batch = {
        "image": np.zeros((4096, 1, 1, 1), np.float32),
        "tokens": generator.standard_normal((4096, 3, 2)).astype(np.float16),
        "mask": (generator.random((4096, 3)) < 0.7).astype(np.int8),
    }
    null = generator.standard_normal((3, 2)).astype(np.float32)
    params = {"y_embedder": {"null_caption": null}}

    def after(step: int, dropout: float) -> TextCondition:
        task = make_task(condition_of=captions(dropout))
        cond: TextCondition = noised_example(task, jnp.int32(step), batch, params)["cond"]
        np.testing.assert_array_equal(cond.mask, batch["mask"])
        return cond

    np.testing.assert_array_equal(after(0, 0.0).tokens, batch["tokens"])
    tokens = np.asarray(after(0, 0.2).tokens)
    dropped = np.all(tokens == null.astype(np.float16), axis=(1, 2))
    assert abs(dropped.mean() - 0.2) < 0.03  # 0.2 +- 0.006 (one standard deviation)
    np.testing.assert_array_equal(tokens[~dropped], batch["tokens"][~dropped])
    assert np.any(np.asarray(after(1, 0.2).tokens) != tokens)


def test_noise_and_timesteps(make_task: MakeTask) -> None:
    batch = {"image": np.zeros((20_000, 1, 1, 1), np.float32)}
    example = noised_example(make_task(), jnp.int32(3), batch, {})
    t, noise = np.asarray(example["t"]), np.asarray(example["noise"])
    assert (t.min(), t.max()) == (0, 999) and abs(t.mean() - 499.5) < 10
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert abs(np.corrcoef(t, noise.ravel())[0, 1]) < 0.03
    assert example["cond"] is None
    other = noised_example(make_task(), jnp.int32(4), batch, {})
    assert abs(np.corrcoef(t, other["t"])[0, 1]) < 0.03
    assert abs(np.corrcoef(noise.ravel(), np.asarray(other["noise"]).ravel())[0, 1]) < 0.03


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


def moments_batch() -> dict[str, np.ndarray]:
    """Means and log-variances of four latents [3, 3, 2]."""
    moments = np.random.default_rng(1).standard_normal((4, 3, 3, 4)).astype(np.float32)
    return {"moments": moments, "label": np.arange(4, dtype=np.int32)}


def test_latents_are_drawn_from_their_moments(make_task: MakeTask) -> None:
    task, batch = make_task(start_of=latents(0.5)), moments_batch()
    repeated = {name: np.repeat(array, 4096, axis=0) for name, array in batch.items()}
    x_start = np.asarray(noised_example(task, jnp.int32(0), repeated, {})["x_start"])
    x_start = x_start.reshape(4, 4096, 3, 3, 2)
    mean, log_variance = np.split(batch["moments"], 2, axis=-1)
    np.testing.assert_allclose(x_start.mean(1), 0.5 * mean, atol=0.08)
    np.testing.assert_allclose(x_start.std(1), 0.5 * np.exp(0.5 * log_variance), rtol=0.06)


def test_draw_of_a_latent_is_a_function_of_seed_step_and_row(make_task: MakeTask) -> None:
    batch = moments_batch()

    def start(seed: int, step: int, rows: int = 4) -> np.ndarray:
        task = make_task(start_of=latents(1.0), seed=seed)
        part = {name: array[:rows] for name, array in batch.items()}
        return np.asarray(noised_example(task, jnp.int32(step), part, {})["x_start"])

    np.testing.assert_array_equal(start(0, 5), start(0, 5))
    np.testing.assert_array_equal(start(0, 5, rows=2), start(0, 5)[:2])
    for other in (start(0, 6), start(1, 5), start(0, 5)[[1, 2, 3, 0]]):
        assert not np.any(other == start(0, 5))


def test_draw_of_a_latent_is_independent_of_the_other_noise(make_task: MakeTask) -> None:
    """And these do not change: a run on pixels has the noise it always had."""
    zeros = {"moments": np.zeros((512, 4, 4, 4), np.float32), "label": np.zeros(512, np.int32)}
    drawn = noised_example(make_task(start_of=latents(1.0)), jnp.int32(2), zeros, {})
    flat = [np.asarray(drawn[name]).ravel() for name in ("x_start", "noise")]
    assert abs(np.corrcoef(*flat)[0, 1]) < 0.03
    pixels = {"image": np.asarray(drawn["x_start"]), "label": zeros["label"]}
    assert_bitwise(noised_example(make_task(), jnp.int32(2), pixels, {}), drawn)


def test_noise_of_a_step_is_what_it_was(make_task: MakeTask, batch: Any) -> None:
    """Runs go on with these keys, so they must not change between versions."""
    key = jax.random.fold_in(jax.random.key(7), 3)
    keys = jax.random.split(key, 3)
    example = noised_example(make_task(seed=7), jnp.int32(3), batch, {})
    np.testing.assert_array_equal(example["t"], jax.random.randint(keys[0], (8,), 0, 1000))
    noise = jax.random.normal(keys[1], batch["image"].shape)
    np.testing.assert_array_equal(example["noise"], noise)
    np.testing.assert_array_equal(example["x_start"], batch["image"])
    every = [*keys, jax.random.fold_in(key, LATENT_KEY)]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in every}) == 4


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
