"""DiG on ImageNet 256 x 256: gated linear attention, from scratch.

    python -m lit_jax train --config configs/dig_imagenet256.py:S/2 --workdir runs/dig_s2

    argument  steps  batch    FID     IS     P     R  H200 hours
    S/2        400K    256  62.06  22.81  0.39  0.56         2.4
    B/2        400K    256  39.50  37.21  0.51  0.63         9.6
    L/2        400K    256  22.90  59.87  0.60  0.64        34.6
    XL/2       400K    256  18.53  68.53  0.63  0.64        50.0

The numbers are those of the DiG paper after 400K steps. The optimiser and the data are those of
DiT; the official script computes in float32, this file in bfloat16 with the recurrence in float32.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

ARGUMENTS = ("S/2", "B/2", "L/2", "XL/2")


def get_config(argument: str = "S/2") -> ConfigDict:
    size = common.choose(argument, ARGUMENTS)
    config = common.imagenet(size)
    config.model.name = f"DiG-{size}"
    del config.model.overrides["qkv_bias"]  # its projections have none
    return config
