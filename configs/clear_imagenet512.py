"""CLEAR on ImageNet 512 x 512: the released DiT-XL/2, its attention cut to circles.

    python -m lit_jax train --config configs/clear_imagenet512.py:XL/2 --workdir runs/clear_xl2_512

    argument     steps  batch  radius  pooled  keys per query, of 1024
    XL/2           10K     32       8       -                      155
    XL/2-r4        10K     32       4       -                       41
    XL/2-r16       10K     32      16       -                      490
    XL/2-r8-f4     10K     32       8   4 x 4                 155 + 64
    XL/2-r4-f4     10K     32       4   4 x 4                  41 + 64

Keys per query are means: circles end at the border. Source and teacher are the released DiT-XL/2 of
512 x 512, which first draws the examples:

    python tools/convert_torch_ckpt.py --src DiT-XL-2-512x512.pt --dst models/DiT-XL-2-512
    python -m lit_jax self_generate --config configs/self_generate.py:imagenet512 \\
        --out data/imagenet512_drawn
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

ARGUMENTS = ("XL/2", "XL/2-r4", "XL/2-r16", "XL/2-r8-f4", "XL/2-r4-f4")


def get_config(argument: str = "XL/2") -> ConfigDict:
    size, _, window = common.choose(argument, ARGUMENTS).partition("-")
    config = common.imagenet(size, 512)
    config.model.name = f"CLEAR-{size}"
    common.clear(config, window or "r8")
    config.data.name = "imagenet512_drawn"
    config.distill.teacher = config.inherit.source = common.model_folder(size, "512")
    return config
