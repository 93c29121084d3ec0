"""Adding a distillation term: a function, a row of `objectives.DISTILLATION` and a weight."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lit_jax import objectives
from lit_jax.config import DistillConfig, EmaConfig
from lit_jax.diffusion.gaussian import create_process
from lit_jax.models import functional, registry
from lit_jax.training.batch import condition_of
from lit_jax.training.step import Task
from support import step_cases, tiny_runs


@dataclass(frozen=True)
class WithL1(DistillConfig):
    """DistillConfig with the weight of one more term."""

    l1_weight: float = 0.0


def l1_term(c: objectives.Comparison) -> objectives.Term:
    loss = jnp.mean(jnp.abs(c.teacher_BxHxWxK - c.student_BxHxWxK))
    return loss, {"l1": loss}


def test_a_distillation_term_is_a_function_a_row_and_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(objectives.DISTILLATION, "l1_weight", l1_term)
    process, config = create_process(), registry.model_config("LiT", **tiny_runs.SIZE)
    network = functional.apply_fn(config)
    params = tiny_runs.random_params(config)
    batch = {
        "image": np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32),
        "label": np.arange(4, dtype=np.int32),
    }

    def metrics(weight: float) -> dict[str, float]:
        settings = WithL1(teacher="teacher", l1_weight=weight)
        task = Task(
            student=network,
            teacher=network,
            process=process,
            objective=objectives.hybrid_objective(process, settings),
            optimizer=optax.sgd(0.1),
            ema=EmaConfig(),
            accumulation=1,
            seed=0,
            condition_of=condition_of(config),
        )
        teacher = tiny_runs.random_params(config, seed=1)
        ((_, found),) = step_cases.steps(task, params, teacher, batch, 1)
        return {name: float(value) for name, value in found.items()}

    without, added = metrics(0.0), metrics(0.25)
    assert "l1" not in without and added["l1"] > 0
    assert added["loss"] == pytest.approx(without["loss"] + 0.25 * added["l1"], rel=1e-5)
