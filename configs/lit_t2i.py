"""LiT-0.6B: text to image from PixArt-Sigma, the two stages of the LiT paper (section 4.3).

    python -m lit_jax train --config configs/lit_t2i.py:512  --workdir runs/lit_t2i_512
    python -m lit_jax train --config configs/lit_t2i.py:1024 --workdir runs/lit_t2i_1024

    argument  steps  batch   lr    lambda_1  lambda_2  weights from       teacher
    512       106K   8 x 48  2e-5  1.0       0.05      its teacher        PixArt-Sigma 512
    1024      155K   2 x 48  2e-5  1.0       0.05      the 512 px LiT     PixArt-Sigma 1024

GenEval in the paper (single object, two objects, counting, colours, position, attribute binding,
overall): 0.97 0.43 0.42 0.79 0.09 0.12 0.47 at 512 px; 0.98 0.50 0.40 0.77 0.11 0.12 0.48 at 1024.

512: everything but the self-attention comes from PixArt-Sigma. 1024: everything comes from the
first stage, the self-attention too; positions are those of 512 px, twice as dense
(pe_interpolation 2). 60 % long and 40 % short captions of each image, one caption in ten dropped.

The paper gives the learning rate only. CAME with warm-up and clipping at 0.01 is how PixArt-Sigma
was trained; 512 px models were trained on square images and several aspect ratios alike, so the
data may be either. They are made by `python -m lit_jax encode --config configs/encode_t2i.py:512`;
docs/text_to_image.md has the whole walk.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

ARGUMENTS = ("512", "1024")
STEPS = {"512": 106_000, "1024": 155_000}
BATCH = {"512": 8 * 48, "1024": 2 * 48}


def get_config(argument: str = "512") -> ConfigDict:
    stage = common.choose(argument, ARGUMENTS)
    config = common.text_to_image("LiT-0.6B", stage, f"t2i{stage}_latents")
    config.total_steps = STEPS[stage]
    config.batch_size = BATCH[stage]
    config.data.caption_weights = (0.6, 0.4)  # long, short
    config.distill.noise_weight = 1.0
    config.distill.variance_weight = 0.05
    first = stage == "512"
    config.inherit.source = config.distill.teacher if first else "runs/lit_t2i_512"
    config.inherit.policy = "all_but_attention" if first else "all"
    config.optimizer.name = "came"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 1_000
    config.optimizer.clip_norm = 0.01
    config.checkpoint_every = 5_000
    return config
