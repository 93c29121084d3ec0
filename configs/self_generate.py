"""Training data that a teacher draws itself: 10,000 examples, as CLEAR trains on.

    python -m lit_jax self_generate --config configs/self_generate.py:imagenet256 \\
        --out data/imagenet256_drawn
    python -m lit_jax self_generate --config configs/self_generate.py:t2i \\
        --config.prompt_file=prompts.txt --out data/t2i1024_drawn

    argument     teacher                       sampler         guidance  evaluations per example
    imagenet256  models/DiT-XL-2               250 steps DDPM         1                      250
    imagenet512  models/DiT-XL-2-512           250 steps DDPM         1                      250
    t2i          models/PixArt-Sigma-XL-2-1024  20 steps DPM        4.5                       40
    digits       runs/demo/teacher              50 steps DDPM         1                       50

Classes: without guidance the examples are the teacher's own distribution, which is what a student
that is guided later has to learn. Guided ones (`--config.cfg_scale=1.5`) look better, and a student
of them is guided twice. Captions: the protocol of PixArt-Sigma; the prompts are a file of yours,
`--config.prompt_file=FILE`, one per line.

`--config.vae=MODEL_FOLDER` shows the first examples as images in `grid.png`.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common
from lit_jax.config import TextConfig
from lit_jax.config.self_generate import SelfGenerateConfig

TEACHERS = {
    "imagenet256": SelfGenerateConfig(
        model=common.model_folder("XL/2"), vae="models/sd-vae-ft-ema", dtype="bfloat16"
    ),
    "imagenet512": SelfGenerateConfig(
        model=common.model_folder("XL/2", "512"), vae="models/sd-vae-ft-ema", dtype="bfloat16"
    ),
    "t2i": SelfGenerateConfig(
        model="models/PixArt-Sigma-XL-2-1024",
        sampler="dpm_solver",
        steps="20",
        cfg_scale=4.5,
        cfg_channels="all",
        prompt_file="prompts.txt",
        text=TextConfig(encoder="models/t5-v1_1-xxl"),
        vae="models/sdxl-vae",
        dtype="bfloat16",
        batch_size=16,
    ),
    "digits": SelfGenerateConfig(model="runs/demo/teacher", steps="50", batch_size=500),
}


def get_config(argument: str = "imagenet256") -> ConfigDict:
    teacher = common.choose(argument, tuple(TEACHERS))
    return ConfigDict(dataclasses.asdict(TEACHERS[teacher]))
