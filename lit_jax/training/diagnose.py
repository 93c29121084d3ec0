"""Names the place where a training step went wrong."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.models import functional
from lit_jax.models.registry import DenoiserConfig
from lit_jax.sharding import path_string
from lit_jax.training.step import Batch, Task, mean_gradient, noised_example


def first_nonfinite(
    task: Task, config: DenoiserConfig, params: Any, teacher: Any, step: int, batch: Batch
) -> str:
    """Repeat the failed step outside the training loop and says where NaN or Inf appears first.

    Looks in the order of the computation: batch, parameters, patch embedding, each block, output,
    teacher, gradients (from the last block to the first).
    """
    example = jax.jit(lambda b, p: noised_example(task, jnp.int32(step), b, p))(batch, params)
    for name in ("x_start", "x_t"):
        if not _finite(example[name]):
            return f"the batch ({name})"
    if bad := _nonfinite_paths(params):
        return f"parameter {bad[0]}"

    def forward(params: Any, x: jax.Array, t: jax.Array, cond: Any) -> tuple[jax.Array, Any]:
        return functional.with_params(config, params).with_activations(x, t, cond)

    inputs = (example["x_t"], example["t"], example["cond"])
    out, activations = jax.jit(forward)(params, *inputs)
    if not _finite(activations["embedding"]):
        return "the patch embedding"
    for index, block in enumerate(activations["blocks"]):
        if not _finite(block):
            return f"block {index} of {config.depth}"
    if not _finite(out):
        return "the final layer"
    if task.teacher is not None and not _finite(jax.jit(task.teacher)(teacher, *inputs)):
        return "the teacher's output"
    gradient, _ = jax.jit(lambda p, b: mean_gradient(task, p, teacher, b))(params, example)
    if bad := _nonfinite_paths(gradient):
        return f"the gradient of {bad[-1]}"
    return "no single place: it does not repeat outside the compiled step"


def _finite(arrays: Any) -> bool:
    """Return whether an array, or all of a network's outputs, are finite."""
    return all(bool(jnp.all(jnp.isfinite(array))) for array in jax.tree.leaves(arrays))


def _nonfinite_paths(tree: Any) -> list[str]:
    """Return paths of leaves with a non-finite value, stacked leaves with the block's index, sorted
    by block."""
    found: list[tuple[int, str]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_string(path)
        if _finite(leaf):
            continue
        if name.startswith("blocks/"):
            axes = tuple(range(1, leaf.ndim))
            for index in np.flatnonzero(~np.asarray(jnp.all(jnp.isfinite(leaf), axis=axes))):
                found.append((int(index), f"{name} of block {index}"))
        else:
            found.append((-1, name))
    return [name for _, name in sorted(found)]
