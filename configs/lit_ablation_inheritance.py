"""What to inherit, and from which DiT-S/2: the LiT paper's Table 3, LiT-S/2, 400K steps.

    python -m lit_jax train --config configs/lit_ablation_inheritance.py:800K --workdir runs/800k

    argument    steps  batch    FID     IS      P      R  H200 hours
    200K         400K    256  57.84  24.72  0.408  0.600         2.6
    300K         400K    256  56.95  25.04  0.414  0.608         2.6
    400K         400K    256  56.07  25.61  0.416  0.601         2.6
    400K-model   400K    256  56.07  25.62  0.418  0.608         2.6
    600K         400K    256  54.80  26.65  0.424  0.613         2.6
    800K         400K    256  53.83  27.16  0.425  0.614         2.6
    600K+qkv     400K    256  55.29  26.09  0.419  0.619         2.6
    600K+kv      400K    256  55.07  26.38  0.422  0.609         2.6
    600K+v       400K    256  54.93  26.44  0.427  0.612         2.6
    600K+q       400K    256  54.82  26.72  0.423  0.605         2.6
    600K+o       400K    256  54.84  26.33  0.425  0.607         2.6

200K ... 800K  everything but attention, from the EMA of a DiT-S/2 after so many steps
400K-model     the same from its weights instead of their EMA
600K+qkv ...   with these projections of its attention, too

docs/reproduce.md has the commands that make the sources.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

SIZE = "S/2"
SOURCES = ("200K", "300K", "400K", "400K-model", "600K", "800K")
PROJECTIONS = ("qkv", "kv", "v", "q", "o")
ARGUMENTS = (*SOURCES, *(f"600K+{name}" for name in PROJECTIONS))


def get_config(argument: str = "800K") -> ConfigDict:
    source, _, projections = common.choose(argument, ARGUMENTS).partition("+")
    config = common.lit(SIZE, common.LINEAR_HEADS[SIZE])
    config.inherit.source = common.model_folder(SIZE, source)
    config.inherit.policy = projections or "all_but_attention"
    return config
