"""The demo's teacher: a small softmax DiT on 8 x 8 handwritten digits, pixel space.

    python -m lit_jax.data digits runs/demo/data
    python -m lit_jax train --config configs/digits_teacher.py --workdir runs/digits_teacher

`demo/teacher/digits_dit.safetensors` is the EMA of this run; `make teacher` makes it again.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.digits()
    config.total_steps = 8_000
    config.model.name = "DiT"
    config.model.overrides.num_heads = 4
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.999
    config.log_every = 50
    config.checkpoint_every = 1_000
    config.sample.every = 2_000
    return config
