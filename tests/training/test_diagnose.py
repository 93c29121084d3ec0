"""Every place at which a step can go wrong is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.models import functional, registry
from lit_jax.training.diagnose import first_nonfinite
from lit_jax.training.step import Task
from support import tiny_runs

CONFIG = registry.model_config("DiT", **tiny_runs.SIZE)
HUGE = 3e38  # finite, but no product with it is

# What is spoiled: path, index of the block or None, value -> what must be named.
CASES: dict[str, tuple[str, int | None, float, str]] = {
    "parameter": ("blocks/mlp/fc1/kernel", 1, np.nan, "parameter blocks/mlp/fc1/kernel of block 1"),
    "embedding": ("x_embedder/kernel", None, HUGE, "the patch embedding"),
    "block 0": ("blocks/mlp/fc2/kernel", 0, HUGE, "block 0 of 2"),
    "block 1": ("blocks/attn/out/kernel", 1, HUGE, "block 1 of 2"),
    "final layer": ("final_layer/linear/kernel", None, HUGE, "the final layer"),
    "teacher": ("", None, 0.0, "the teacher's output"),
    "gradient": ("", None, 0.0, "the gradient of blocks/.* of block 1"),
    "nothing": ("", None, 0.0, "no single place"),
}


def spoiled(path: str, block: int | None, value: float) -> Any:
    params = tiny_runs.random_params(CONFIG)
    if path:
        *parents, last = path.split("/")
        leaf = params
        for name in parents:
            leaf = leaf[name]
        leaf[last][... if block is None else block] = value
    return params


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": np.arange(8, dtype=np.int32)}


@pytest.mark.parametrize("case", CASES)
def test_first_place_is_named(
    make_task: Callable[..., Task], digits: dict[str, np.ndarray], case: str
) -> None:
    path, block, value, named = CASES[case]
    student, changes = functional.apply_fn(CONFIG), {}
    if case == "teacher":
        changes["teacher"] = lambda params, *inputs: student(params, *inputs) * jnp.inf
    if case == "gradient":  # the output is finite, the loss overflows on the way back
        changes["objective"] = lambda out, *rest: (1e38 * jnp.sum(jnp.square(1e19 * out)), {})
    task = make_task(student=student, **changes)
    params = jax.tree.map(jnp.asarray, spoiled(path, block, value))
    found = first_nonfinite(task, CONFIG, params, params, 4, digits)
    assert re.match(named, found), found


def test_bad_batch_is_named(make_task: Callable[..., Task], digits: dict[str, np.ndarray]) -> None:
    digits["image"][5, 2, 3, 0] = np.inf
    params = spoiled("", None, 0.0)
    found = first_nonfinite(make_task(), CONFIG, params, {}, 4, digits)
    assert found == "the batch (x_start)"
