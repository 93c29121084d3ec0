"""Class labels of a set of images: one row of `LABEL_POLICIES` per rule."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.diffusion.samplers import image_keys
from lit_jax.models.registry import LabelledConfig

DRAWING = 0x1ABE15  # keeps the labels of a seed apart from its noise


def balanced(num_classes: int, seed: int, count: int) -> np.ndarray:
    """Return the classes take turns, 0, 1, 2, ...: their counts differ by at most one. int32
    [count]."""
    return np.resize(np.arange(num_classes, dtype=np.int32), count)


def uniform(num_classes: int, seed: int, count: int) -> np.ndarray:
    """Return every label drawn on its own, as the official DiT does (`sample_ddp.py`). int32
    [count]; label i is a function of the seed and i, whatever the count."""
    key = jax.random.fold_in(jax.random.key(seed), DRAWING)
    return np.asarray(_draw(key, jnp.arange(count), num_classes), np.int32)


@functools.partial(jax.jit, static_argnums=2)
def _draw(key: jax.Array, index_N: jax.Array, num_classes: int) -> jax.Array:
    keys_N = image_keys(key, index_N)
    return jax.vmap(lambda one: jax.random.randint(one, (), 0, num_classes))(keys_N)


LABEL_POLICIES: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "balanced": balanced,
    "uniform": uniform,
}


def assign_labels(
    config: LabelledConfig,
    labels: tuple[int, ...],
    count: int,
    policy: str = "balanced",
    seed: int = 0,
) -> np.ndarray | None:
    """Return the label of each image, int32 [count]; None for an unconditional model.

    `labels`, where given, are repeated in their order; without them a row of `LABEL_POLICIES`
    decides.
    """
    if not config.num_classes:
        return None
    if labels:
        return np.resize(np.asarray(labels, np.int32), count)
    return LABEL_POLICIES[policy](config.num_classes, seed, count)
