"""CLEAR on ImageNet 256 x 256: a DiT whose attention is cut to circles, healed in 10K steps.

    python -m lit_jax train --config configs/clear_imagenet256.py:XL/2 --workdir runs/clear_xl2

    argument     steps  batch  radius  pooled  keys per query, of 256  teacher
    S/2            10K     32       8       -                     120  models/DiT-S-2-800K
    B/2            10K     32       8       -                     120  models/DiT-B-2-800K
    L/2            10K     32       8       -                     120  models/DiT-L-2-800K
    XL/2           10K     32       8       -                     120  models/DiT-XL-2
    SIZE-r4        10K     32       4       -                      36  the same
    SIZE-r8-f4     10K     32       8   4 x 4                120 + 16  the same
    SIZE-r4-f4     10K     32       4   4 x 4                 36 + 16  the same

Keys per query are means: circles end at the border. CLEAR published its recipe for FLUX, with no
numbers for class labels. At 256 px there are 16 x 16 tokens: a radius of 8 sees half of them, one
of 16 nearly all; what CLEAR is for begins at 512 px.

Source and teacher are one softmax DiT, which first draws the examples:

    python -m lit_jax self_generate --config configs/self_generate.py:imagenet256 \\
        --out data/imagenet256_drawn

for XL/2, and for another size with `--config.model=models/DiT-S-2-800K` and
`--out data/imagenet256_drawn_S-2`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

SIZES = tuple(common.SOFTMAX_HEADS)
WINDOWS = ("r4", "r8-f4", "r4-f4")
ARGUMENTS = (*SIZES, *(f"{size}-{window}" for size in SIZES for window in WINDOWS))


def get_config(argument: str = "S/2") -> ConfigDict:
    size, _, window = common.choose(argument, ARGUMENTS).partition("-")
    config = common.imagenet(size)
    config.model.name = f"CLEAR-{size}"
    common.clear(config, window or "r8")
    released = size == "XL/2"
    config.data.name = "imagenet256_drawn"
    if not released:
        config.data.name += "_" + size.replace("/", "-")
    config.distill.teacher = common.model_folder(size, *(() if released else ("800K",)))
    config.inherit.source = config.distill.teacher
    return config
