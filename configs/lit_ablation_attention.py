"""Which linear attention: the LiT paper's Table 1, from scratch, 400K steps.

    python -m lit_jax train --config configs/lit_ablation_attention.py:S/2-relu_dwc --workdir runs/x

    argument                steps  batch    FID     IS     P     R  H200 hours
    S/2-relu                 400K    256  88.46  15.11  0.29  0.45         2.4
    S/2-relu_dwc             400K    256  63.66  22.16  0.38  0.58         2.4
    S/2-focused_relu         400K    256  63.05  22.49  0.39  0.58         2.4
    S/2-focused_gelu         400K    256  70.83  19.41  0.36  0.54         2.4
    B/2-relu                 400K    256  56.92  25.80  0.42  0.59         9.5
    B/2-relu_dwc             400K    256  42.11  34.60  0.48  0.63         9.6
    B/2-focused_relu         400K    256  40.58  35.98  0.50  0.63         9.6
    B/2-focused_gelu         400K    256  58.86  24.23  0.42  0.57         9.6
    S/2-gelu                 400K    256      -      -     -     -         2.4
    S/2-gelu_dwc             400K    256      -      -     -     -         2.4
    S/2-focused_relu_plain   400K    256      -      -     -     -         2.4
    S/2-sana                 400K    256      -      -     -     -         2.4
    S/2-window               400K    256      -      -     -     -         2.5
    B/2-gelu                 400K    256      -      -     -     -         9.5
    B/2-gelu_dwc             400K    256      -      -     -     -         9.6
    B/2-focused_relu_plain   400K    256      -      -     -     -         9.5
    B/2-sana                 400K    256      -      -     -     -         9.5
    B/2-window               400K    256      -      -     -     -         9.6

relu                ReLU linear attention
relu_dwc            with a 5 x 5 depth-wise convolution of the values: what LiT uses
focused_relu        focused linear attention with the convolution
focused_gelu        the same with GELU for ReLU
gelu, gelu_dwc      GELU for ReLU without focusing, without and with the convolution
focused_relu_plain  focused linear attention without the convolution
sana                SANA's: no epsilon in the features, a normaliser of sums, heads of 32, no bias
window              CLEAR's circles of radius 8 in softmax attention, from scratch

The first four are rows of the paper; the others are this project's. All have as many heads as the
softmax model, except SANA. That model is configs/dit_imagenet256.py:S/2 and B/2; gated linear
attention comes with DiG's own block in configs/dig_imagenet256.py.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import common

ATTENTION: dict[str, dict[str, Any]] = {
    "relu": {"mixer": "linear", "kernel_fn": "relu", "kernel_size": None},
    "relu_dwc": {"mixer": "linear", "kernel_fn": "relu", "kernel_size": 5},
    "focused_relu": {"mixer": "focused", "kernel_fn": "relu", "kernel_size": 5},
    "focused_gelu": {"mixer": "focused", "kernel_fn": "gelu", "kernel_size": 5},
    "gelu": {"mixer": "linear", "kernel_fn": "gelu", "kernel_size": None},
    "gelu_dwc": {"mixer": "linear", "kernel_fn": "gelu", "kernel_size": 5},
    "focused_relu_plain": {"mixer": "focused", "kernel_fn": "relu", "kernel_size": None},
    "sana": {"mixer": "sana", "kernel_fn": "relu", "kernel_size": None, "qkv_bias": False},
    "window": {"mixer": "window", "window_size": 8},
}
SANA_HEADS = {"S/2": 12, "B/2": 24}  # of 32 channels
ARGUMENTS = tuple(f"{size}-{name}" for size in ("S/2", "B/2") for name in ATTENTION)


def get_config(argument: str = "S/2-relu_dwc") -> ConfigDict:
    size, name = common.choose(argument, ARGUMENTS).split("-")
    config = common.imagenet(size)
    config.model.name = f"{'CLEAR' if name == 'window' else 'LiT'}-{size}"
    heads = SANA_HEADS if name == "sana" else common.SOFTMAX_HEADS
    config.model.overrides.num_heads = heads[size]
    config.model.overrides.update(ATTENTION[name])
    return config
