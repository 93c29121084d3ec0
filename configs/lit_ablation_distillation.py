"""Which teacher and weights: the LiT paper's Table 4, LiT-S/2 from a DiT-S/2 of 800K, 400K steps.

    python -m lit_jax train --config configs/lit_ablation_distillation.py:XL/2-0.5-0.05 --workdir x

    argument        steps  batch    FID     IS      P      R  H200 hours
    S/2-0.1-0        400K    256  55.11  26.28  0.419  0.614         3.4
    XL/2-0.1-0       400K    256  53.05  27.43  0.431  0.609        19.6
    XL/2-0.05-0      400K    256  53.41  27.26  0.427  0.610        19.6
    XL/2-0.5-0       400K    256  51.13  28.89  0.438  0.616        19.6
    XL/2-0.1-0.05    400K    256  52.76  27.70  0.431  0.620        19.6
    XL/2-0-0.05      400K    256  53.49  27.26  0.429  0.609        19.6
    XL/2-0.05-0.05   400K    256  53.14  27.46  0.431  0.609        19.6
    XL/2-0.5-0.05    400K    256  50.79  29.17  0.443  0.618        19.6

The argument is teacher, lambda_1 (noise) and lambda_2 (variance). The row without a teacher is
configs/lit_ablation_inheritance.py:800K.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

SIZE = "S/2"
ARGUMENTS = (
    "S/2-0.1-0",
    "XL/2-0.1-0",
    "XL/2-0.05-0",
    "XL/2-0.5-0",
    "XL/2-0.1-0.05",
    "XL/2-0-0.05",
    "XL/2-0.05-0.05",
    "XL/2-0.5-0.05",
)


def get_config(argument: str = "XL/2-0.5-0.05") -> ConfigDict:
    teacher, noise, variance = common.choose(argument, ARGUMENTS).split("-")
    config = common.lit(SIZE, common.LINEAR_HEADS[SIZE])
    config.inherit.source = common.model_folder(SIZE, "800K")
    config.inherit.policy = "all_but_attention"
    steps = ("800K",) if teacher == SIZE else ()
    config.distill.teacher = common.model_folder(teacher, *steps)
    config.distill.noise_weight = float(noise)
    config.distill.variance_weight = float(variance)
    return config
