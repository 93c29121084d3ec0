"""The demo's students: LiT on handwritten digits, three ways to the same number of steps.

    python -m lit_jax train --config configs/digits_lit.py:distilled --workdir runs/digits_lit

after `make demo`, which leaves the data and the converted teacher in `runs/demo`.

distilled: weights inherited from the teacher, hybrid distillation (lambda_1 0.5, lambda_2 0.05)
inherited: weights inherited, no distillation
scratch:   neither

All three share every other number.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

TEACHER = "runs/demo/teacher"


def get_config(argument: str = "distilled") -> ConfigDict:
    recipe = common.choose(argument, ("distilled", "inherited", "scratch"))
    config = common.digits()
    config.total_steps = 400
    config.model.name = "LiT"
    config.model.overrides.num_heads = 2
    config.model.scan_unroll = 4  # four small layers: a quarter less time per step on a CPU
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.ema.decay = 0.99
    config.ema.warmup = True
    config.log_every = 5
    config.checkpoint_every = 400
    if recipe != "scratch":
        config.inherit.source = TEACHER
    if recipe == "distilled":
        config.distill.teacher = TEACHER
    return config
