"""The text-to-image demo's teacher: a small softmax PixArt on images of coloured shapes.

    python -m lit_jax train --config configs/shapes_teacher.py --workdir runs/shapes_teacher

`demo/t2i/teacher/shapes_pixart.safetensors` is the EMA of this run; `make teacher-t2i` makes it
again, from the data on.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.shapes()
    config.total_steps = 12_000
    config.model.overrides.mixer = "softmax"
    config.model.overrides.num_heads = 4
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup_steps = 200
    config.ema.decay = 0.998
    config.log_every = 50
    config.checkpoint_every = 2_000
    return config
