"""LiT on ImageNet 256 x 256, the whole recipe: the LiT paper's Tables 5 and 6.

    python -m lit_jax train --config configs/lit_imagenet256.py:S/2 --workdir runs/lit_s2

    argument   steps  batch  guidance    FID      IS      P      R  H200 hours
    S/2-100K    100K    256         1  60.91   23.51  0.399  0.583         4.9
    B/2-100K    100K    256         1  38.39   38.59  0.516  0.627         6.8
    L/2-100K    100K    256         1  17.80   76.26  0.639  0.636        13.0
    XL/2-100K   100K    256         1  12.90   95.80  0.657  0.653        17.1
    S/2         400K    256         1  50.79   29.17  0.443  0.618        19.6
    B/2         400K    256         1  29.55   50.57  0.557  0.645        27.0
    L/2         400K    256         1  13.73   90.53  0.656  0.650        51.9
    XL/2        400K    256         1  10.67  110.95  0.668  0.667        68.6
    XL/2-1.4M   1.4M    256         1  10.24  114.79  0.666  0.674       239.9
    XL/2-1.4M   1.4M    256      1.25   3.60  191.06  0.758  0.623       239.9
    XL/2-1.4M   1.4M    256       1.5   2.32  265.20  0.824  0.574       239.9

Each student inherits from a DiT of its own size and learns from the released DiT-XL/2, which is
also the source of XL/2. The paper takes a DiT-S/2 of 800K steps; for B and L it does not say, the
same is assumed (docs/reproduce.md has the commands). The teacher comes in with

    python tools/convert_torch_ckpt.py --src DiT-XL-2-256x256.pt --dst models/DiT-XL-2

A run of 400K steps passes through that of 100K: only `total_steps` differs.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

SIZES = tuple(common.LINEAR_HEADS)
ARGUMENTS = (*SIZES, *(f"{size}-100K" for size in SIZES), "XL/2-1.4M")


def get_config(argument: str = "S/2") -> ConfigDict:
    size, _, steps = common.choose(argument, ARGUMENTS).partition("-")
    config = common.lit(size, common.LINEAR_HEADS[size])
    if steps:
        config.total_steps = common.steps_of(steps)
    source = () if size == "XL/2" else ("800K",)
    config.inherit.source = common.model_folder(size, *source)
    config.inherit.policy = "all_but_attention"
    config.distill.teacher = common.model_folder("XL/2")
    config.distill.noise_weight = 0.5
    config.distill.variance_weight = 0.05
    return config
