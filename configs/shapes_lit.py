"""The students of the text-to-image demo: LiT on coloured shapes, three ways to the same number of
steps.

    python -m lit_jax train --config configs/shapes_lit.py:distilled --workdir runs/shapes_lit

after `make demo-t2i`, which leaves the data and the converted models in `runs/`.

distilled: weights inherited from the teacher, hybrid distillation (lambda_1 1.0, lambda_2 0.05)
inherited: weights inherited, no distillation
scratch:   neither

All three share every other number; heads, kernel and lambdas are those of LiT-0.6B.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

TEACHER = "runs/t2i-models/teacher"


def get_config(argument: str = "distilled") -> ConfigDict:
    recipe = common.choose(argument, ("distilled", "inherited", "scratch"))
    config = common.shapes()
    config.total_steps = 1_200
    config.model.overrides.update(
        {
            "mixer": "linear",
            "num_heads": 2,
            "cross_num_heads": 4,
            "kernel_size": 5,
            "kernel_fn": "relu",
        }
    )
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 50
    config.ema.decay = 0.99
    config.ema.warmup = True
    config.distill.noise_weight, config.distill.variance_weight = 1.0, 0.05
    config.log_every = 10
    config.checkpoint_every = 1_200
    if recipe != "scratch":
        config.inherit.source = TEACHER
    if recipe == "distilled":
        config.distill.teacher = TEACHER
    return config
