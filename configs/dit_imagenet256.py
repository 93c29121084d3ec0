"""DiT on ImageNet 256 x 256: the softmax baseline and the source of a student's weights.

    python -m lit_jax train --config configs/dit_imagenet256.py:S/2 --workdir runs/dit_s2

    argument  steps  batch  guidance    FID      IS     P     R  H200 hours
    S/2        400K    256         1  68.40       -     -     -         2.6
    B/2        400K    256         1  43.47       -     -     -         9.9
    L/2        400K    256         1  23.33       -     -     -        34.8
    XL/2       400K    256         1  19.47       -     -     -        51.2
    XL/2-7M      7M    256         1   9.62  121.50  0.67  0.67       895.6
    XL/2-7M      7M    256      1.25   3.22  201.77  0.76  0.62       895.6
    XL/2-7M      7M    256       1.5   2.27  278.24  0.83  0.57       895.6
    S/4        400K    256         1  100.4       -     -     -         0.6
    S/8        400K    256         1  153.6       -     -     -         0.2
    B/4        400K    256         1   68.4       -     -     -         2.4
    B/8        400K    256         1  122.7       -     -     -         0.6
    L/4        400K    256         1   45.6       -     -     -         8.5
    L/8        400K    256         1  118.9       -     -     -         2.2
    XL/4       400K    256         1   43.0       -     -     -        12.5
    XL/8       400K    256         1  106.4       -     -     -         3.2
    S/2-800K   800K    256         1      -       -     -     -         5.2
    B/2-800K   800K    256         1      -       -     -     -        19.8
    L/2-800K   800K    256         1      -       -     -     -        69.6

Numbers without a length are those of the DiT paper after 400K steps. `XL/2-7M` is the released
model. A student inherits from the models of 800K steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

SIZES = tuple(f"{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8))
ARGUMENTS = (*SIZES, "S/2-800K", "B/2-800K", "L/2-800K", "XL/2-7M")


def get_config(argument: str = "S/2") -> ConfigDict:
    size, _, steps = common.choose(argument, ARGUMENTS).partition("-")
    config = common.imagenet(size)
    config.model.name = f"DiT-{size}"
    if steps:
        config.total_steps = common.steps_of(steps)
    return config
