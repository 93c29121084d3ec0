"""DiT on ImageNet 256 x 256: the softmax baseline and the source of a student's weights.

    python -m lit_jax train --config configs/dit_imagenet256.py:S/2 --workdir runs/dit_s2

Arguments {S,B,L,XL}/{2,4,8}. FID-50K of the DiT paper after 400K steps (250 DDPM steps, no
guidance):

         S        B        L        XL
    /2   68.4     43.5     23.3     19.5
    /4   100.4    68.4     45.6     43.0
    /8   153.6    122.7    118.9    106.4

`--config.total_steps=800000` gives the DiT-S/2 that LiT-S/2 inherits from.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

SIZES = tuple(f"{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8))


def get_config(argument: str = "S/2") -> ConfigDict:
    size = common.choose(argument, SIZES)
    config = common.imagenet256(size)
    config.model.name = f"DiT-{size}"
    return config
