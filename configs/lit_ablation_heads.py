"""How many heads: the LiT paper's Table 2, from scratch, 400K steps.

    python -m lit_jax train --config configs/lit_ablation_heads.py:S/2-2 --workdir runs/heads_s2_2

    argument  steps  batch     FID     IS      P      R  H200 hours
    S/2-1      400K    256   64.42  21.54  0.380  0.574         2.8
    S/2-2      400K    256   63.24  22.07  0.385  0.570         2.6
    S/2-3      400K    256   63.21  22.08  0.386  0.583         2.5
    S/2-6      400K    256   63.66  22.16  0.383  0.580         2.4
    S/2-48     400K    256   78.76  17.46  0.322  0.482         2.4
    S/2-96     400K    256  116.00  11.49  0.224  0.261         2.4
    B/2-1      400K    256   41.77  34.78  0.487  0.631        11.0
    B/2-2      400K    256   41.39  35.59  0.494  0.631        10.2
    B/2-3      400K    256   40.86  35.79  0.497  0.629        10.0
    B/2-12     400K    256   42.11  34.60  0.484  0.631         9.6
    B/2-96     400K    256   68.30  20.45  0.375  0.531         9.4
    B/2-192    400K    256  112.39  12.07  0.240  0.282         9.4
    L/2-1      400K    256   24.46  57.36  0.600  0.637        39.1
    L/2-2      400K    256   24.37  57.02  0.599  0.622        36.3
    L/2-4      400K    256   24.04  59.02  0.597  0.636        34.9
    L/2-16     400K    256   25.25  54.67  0.587  0.632        33.8
    XL/2-1     400K    256   21.13  65.06  0.619  0.632        57.7
    XL/2-2     400K    256   20.66  65.39  0.624  0.636        53.5
    XL/2-4     400K    256   20.82  65.52  0.619  0.632        51.5
    XL/2-16    400K    256   21.69  63.06  0.617  0.628        50.0

The argument is the size and the number of heads of ReLU linear attention with the convolution.
S/2-6 and B/2-12 are rows of Table 1 too.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

HEADS = {
    "S/2": (1, 2, 3, 6, 48, 96),
    "B/2": (1, 2, 3, 12, 96, 192),
    "L/2": (1, 2, 4, 16),
    "XL/2": (1, 2, 4, 16),
}
ARGUMENTS = tuple(f"{size}-{heads}" for size, row in HEADS.items() for heads in row)


def get_config(argument: str = "S/2-2") -> ConfigDict:
    size, heads = common.choose(argument, ARGUMENTS).split("-")
    return common.lit(size, int(heads))
