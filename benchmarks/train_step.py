"""One training step: softmax DiT against LiT, without and with a teacher, at growing token grids.

    python benchmarks/train_step.py

The backbone is the digits one (width 64, 4 layers), so that the grid sizes fit a CPU. Writes
`benchmarks/results/train_step_<platform>.json`; the ratio is softmax / linear.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from timing import compare, save

from lit_jax.config import DistillConfig, EmaConfig, OptimizerConfig
from lit_jax.diffusion.gaussian import create_process
from lit_jax.models import functional, registry
from lit_jax.objectives import hybrid_objective
from lit_jax.training.batch import labels
from lit_jax.training.optimizer import frozen_mask, make_optimizer
from lit_jax.training.state import create_state
from lit_jax.training.step import Task, train_step

# Side of the token grid, batch size: about the same number of tokens each.
CASES = ((8, 64), (16, 16), (32, 4), (64, 1))
HEADS = {"DiT": 4, "LiT": 2}


def step_of(family: str, side: int, batch_size: int, distilled: bool) -> Callable[[], Any]:
    """A compiled step on fixed data, as a function without arguments."""
    shape = {"input_size": side, "patch_size": 1, "in_channels": 1, "num_classes": 10}
    shape |= {"hidden_size": 64, "depth": 4}
    config = registry.model_config(family, num_heads=HEADS[family], **shape)
    teacher = registry.model_config("DiT", num_heads=HEADS["DiT"], **shape) if distilled else None
    process = create_process()
    params = functional.init_params(config, jax.random.key(0))
    optimizer = make_optimizer(OptimizerConfig(), 1000, frozen_mask(params, ()), config)
    task = Task(
        student=functional.apply_fn(config),
        teacher=None if teacher is None else functional.apply_fn(teacher),
        process=process,
        objective=hybrid_objective(process, DistillConfig(teacher="DiT" if distilled else "")),
        optimizer=optimizer,
        ema=EmaConfig(),
        accumulation=1,
        seed=0,
        condition_of=labels(config.null_label, 0.1),
    )
    state = create_state(params, optimizer)
    teacher_params = {} if teacher is None else functional.init_params(teacher, jax.random.key(1))
    batch = {
        "image": jax.random.normal(jax.random.key(2), (batch_size, side, side, 1)),
        "label": jnp.zeros(batch_size, jnp.int32),
    }
    step = jax.jit(functools.partial(train_step, task))
    return lambda: step(state, teacher_params, batch)


def main() -> None:
    rows = []
    for side, batch_size in CASES:
        functions = {
            "softmax": step_of("DiT", side, batch_size, distilled=False),
            "linear": step_of("LiT", side, batch_size, distilled=False),
            "distilled": step_of("LiT", side, batch_size, distilled=True),
        }
        times = compare(functions, rounds=7)
        rows.append({"tokens": f"{batch_size} x {side * side}"} | times)
    save("train_step", rows, ratio=("softmax", "linear"))


if __name__ == "__main__":
    main()
