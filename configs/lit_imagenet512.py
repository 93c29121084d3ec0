"""LiT-XL/2 on ImageNet 512 x 512: the LiT paper's Table 7.

    python -m lit_jax train --config configs/lit_imagenet512.py:XL/2 --workdir runs/lit_xl2_512

    argument  steps  batch  guidance    FID      IS     P     R  H200 hours
    XL/2       700K    128         1  14.00   92.84  0.76  0.62       246.0
    XL/2       700K    128       1.5   3.69  207.97  0.85  0.53       246.0

700K steps at batch 128 see as many images as 350K at 256. lambda_1 is 1.0 here. Source and teacher
are the released DiT-XL/2 of 512 x 512:

    python tools/convert_torch_ckpt.py --src DiT-XL-2-512x512.pt --dst models/DiT-XL-2-512
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

ARGUMENTS = ("XL/2",)


def get_config(argument: str = "XL/2") -> ConfigDict:
    size = common.choose(argument, ARGUMENTS)
    config = common.lit(size, common.LINEAR_HEADS[size], 512)
    config.total_steps = 700_000
    config.batch_size = 128
    config.inherit.source = common.model_folder(size, "512")
    config.inherit.policy = "all_but_attention"
    config.distill.teacher = common.model_folder(size, "512")
    config.distill.noise_weight = 1.0
    config.distill.variance_weight = 0.05
    return config
