"""Random choices of a step: timesteps, noise, dropped conditions, drawn latents."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.models.conditions import TextCondition
from lit_jax.training.batch import LATENT_KEY, captions, labels, latents
from lit_jax.training.step import (
    noised_example,
)
from support.step_cases import MakeTask, assert_bitwise


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
        task = make_task(condition_of=captions("y_embedder/null_caption", dropout))
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
