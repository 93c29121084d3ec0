from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lit_jax.config import DistillConfig, EmaConfig
from lit_jax.diffusion.gaussian import create_process
from lit_jax.objectives import hybrid_objective
from lit_jax.training.batch import labels
from lit_jax.training.step import Task

CLASSES = 10
PROCESS = create_process()


def toy_network(params: Any, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    """[B, 4, 4, 2] -> [B, 4, 4, 4]: linear in x, with a shift per label and per timestep."""
    shifted = x + params["labels"][label][:, None, None] + 1e-3 * t[:, None, None, None]
    return jnp.tanh(shifted @ params["kernel"] + params["bias"])


def toy_params(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"labels": (CLASSES + 1, 2), "kernel": (2, 4), "bias": (4,)}
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


@pytest.fixture
def params() -> dict[str, np.ndarray]:
    return toy_params()


@pytest.fixture
def teacher_params() -> dict[str, np.ndarray]:
    return toy_params(seed=1)


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(2)
    return {
        "image": generator.uniform(-1, 1, (8, 4, 4, 2)).astype(np.float32),
        "label": generator.integers(0, CLASSES, 8).astype(np.int32),
    }


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """A task around the toy network; `distilled` adds a teacher, other arguments are fields."""

    def make(distilled: bool = False, **changes: Any) -> Task:
        settings = DistillConfig(teacher="toy" if distilled else "")
        fields = {
            "student": toy_network,
            "teacher": toy_network if distilled else None,
            "process": PROCESS,
            "objective": hybrid_objective(PROCESS, settings),
            "optimizer": optax.adamw(1e-2, weight_decay=0.0),
            "ema": EmaConfig(decay=0.9),
            "accumulation": 1,
            "seed": 0,
            "condition_of": labels(CLASSES, 0.1),
        }
        return Task(**(fields | changes))

    return make
