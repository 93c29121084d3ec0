"""DiT-XL/2 on ImageNet 512 x 512: teacher and baseline of the LiT paper's Table 7.

    python -m lit_jax train --config configs/dit_imagenet512.py:XL/2-3M --workdir runs/dit_xl2_512

    argument  steps  batch  guidance    FID      IS     P     R  H200 hours
    XL/2-3M      3M    256         1  12.03  105.25  0.75  0.64      1697.2
    XL/2-3M      3M    256      1.25   4.64  174.77  0.81  0.57      1697.2
    XL/2-3M      3M    256       1.5   3.04  240.82  0.84  0.54      1697.2

This is the released model; to compare with it, convert it instead of training it again:

    python tools/convert_torch_ckpt.py --src DiT-XL-2-512x512.pt --dst models/DiT-XL-2-512
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

ARGUMENTS = ("XL/2-3M",)


def get_config(argument: str = "XL/2-3M") -> ConfigDict:
    size, _, steps = common.choose(argument, ARGUMENTS).partition("-")
    config = common.imagenet(size, 512)
    config.model.name = f"DiT-{size}"
    config.total_steps = common.steps_of(steps)
    return config
