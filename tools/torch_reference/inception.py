"""The Inception V3 of the FID in plain torch, on the state dict of pytorch-fid.

Written from Szegedy et al. 2015 (arXiv 1512.00567) and the graph of 2015-12-05. Where that graph
differs from the network of torchvision: averages leave padding out, and the last block pools by
maximum. B images of height H and width W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tools.torch_reference.layers import Architecture, Inputs, Outputs, State, linear

INPUT_SIZE = 299
SPATIAL_CHANNELS = 7


def random_inputs(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return images uint8 [2, 3, H, W], not square, as smooth as pictures are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 6, 8, generator=generator)
    images = F.interpolate(coarse, size=(48, 72), mode="bicubic") * 256
    images += 8 * torch.randn(images.shape, generator=generator)
    return {"images": images.clamp(0, 255).to(torch.uint8)}


def official(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return pool3 [B, 2048], logits [B, 1008] with bias, spatial [B, 7, 17, 17] of the sFID."""
    x = PREPROCESSINGS[architecture["preprocessing"]](inputs["images"].float())
    x = unit(state, "Conv2d_1a_3x3", x, stride=2, padded=False)
    x = unit(state, "Conv2d_2a_3x3", x, padded=False)
    x = largest(unit(state, "Conv2d_2b_3x3", x))
    x = unit(state, "Conv2d_3b_1x1", x)
    x = largest(unit(state, "Conv2d_4a_3x3", x, padded=False))
    for letter in "bcd":
        x = torch.cat(grid_35(state, f"Mixed_5{letter}", x), dim=1)
    x = torch.cat(shrink_to_17(state, "Mixed_6a", x), dim=1)
    for letter in "bcde":
        branches = grid_17(state, f"Mixed_6{letter}", x)
        if letter == "d":
            spatial = branches[0][:, :SPATIAL_CHANNELS]
        x = torch.cat(branches, dim=1)
    x = torch.cat(shrink_to_8(state, "Mixed_7a", x), dim=1)
    x = torch.cat(grid_8(state, "Mixed_7b", x, average(x)), dim=1)
    x = torch.cat(grid_8(state, "Mixed_7c", x, F.max_pool2d(x, 3, stride=1, padding=1)), dim=1)
    pool3 = x.mean(dim=(2, 3))
    return {"pool3": pool3, "logits": linear(state, "fc", pool3), "spatial": spatial}


def resized_half_pixel(images: torch.Tensor) -> torch.Tensor:
    """Return as pytorch-fid: [0, 1], bilinear on pixel centres without antialiasing, then [-1,
    1]."""
    size = (INPUT_SIZE, INPUT_SIZE)
    return 2 * F.interpolate(images / 255, size=size, mode="bilinear", align_corners=False) - 1


def resized_tf1(images: torch.Tensor) -> torch.Tensor:
    """Return as the TensorFlow graph: bilinear from upper left corners, then (x - 128) / 128."""
    return (resized_axis(resized_axis(images.mT).mT) - 128) / 128


def resized_axis(x: torch.Tensor) -> torch.Tensor:
    """Return the last axis from n points to 299, the i-th at i n / 299 of the old ones."""
    n = x.shape[-1]
    position = torch.arange(INPUT_SIZE, dtype=torch.float32) * (n / INPUT_SIZE)
    below = position.floor().long().clamp(max=n - 1)
    above = (below + 1).clamp(max=n - 1)
    return x[..., below] + (x[..., above] - x[..., below]) * (position - below)


PREPROCESSINGS = {"tf1": resized_tf1, "pytorch_fid": resized_half_pixel}


def unit(
    state: State, name: str, x: torch.Tensor, stride: int = 1, padded: bool = True
) -> torch.Tensor:
    """Return convolution without bias, batch norm with stored statistics, ReLU."""
    weight = state[f"{name}.conv.weight"]
    padding = (weight.shape[2] // 2, weight.shape[3] // 2) if padded else (0, 0)
    x = F.conv2d(x, weight, stride=stride, padding=padding)
    statistics = (state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"])
    affine = (state[f"{name}.bn.weight"], state[f"{name}.bn.bias"])
    return F.relu(F.batch_norm(x, *statistics, *affine, eps=1e-3))


def chain(state: State, block: str, x: torch.Tensor, *names: str) -> torch.Tensor:
    """Return one unit after the other, on a grid that stays."""
    for name in names:
        x = unit(state, f"{block}.branch{name}", x)
    return x


def largest(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, stride=2)


def average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def grid_35(state: State, block: str, x: torch.Tensor) -> list[torch.Tensor]:
    return [
        chain(state, block, x, "1x1"),
        chain(state, block, x, "5x5_1", "5x5_2"),
        chain(state, block, x, "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
        chain(state, block, average(x), "_pool"),
    ]


def shrink_to_17(state: State, block: str, x: torch.Tensor) -> list[torch.Tensor]:
    deep = chain(state, block, x, "3x3dbl_1", "3x3dbl_2")
    return [
        unit(state, f"{block}.branch3x3", x, stride=2, padded=False),
        unit(state, f"{block}.branch3x3dbl_3", deep, stride=2, padded=False),
        largest(x),
    ]


def grid_17(state: State, block: str, x: torch.Tensor) -> list[torch.Tensor]:
    return [
        chain(state, block, x, "1x1"),
        chain(state, block, x, *(f"7x7_{i}" for i in range(1, 4))),
        chain(state, block, x, *(f"7x7dbl_{i}" for i in range(1, 6))),
        chain(state, block, average(x), "_pool"),
    ]


def shrink_to_8(state: State, block: str, x: torch.Tensor) -> list[torch.Tensor]:
    short = chain(state, block, x, "3x3_1")
    deep = chain(state, block, x, "7x7x3_1", "7x7x3_2", "7x7x3_3")
    return [
        unit(state, f"{block}.branch3x3_2", short, stride=2, padded=False),
        unit(state, f"{block}.branch7x7x3_4", deep, stride=2, padded=False),
        largest(x),
    ]


def grid_8(state: State, block: str, x: torch.Tensor, pooled: torch.Tensor) -> list[torch.Tensor]:
    short = chain(state, block, x, "3x3_1")
    deep = chain(state, block, x, "3x3dbl_1", "3x3dbl_2")
    return [
        chain(state, block, x, "1x1"),
        *(chain(state, block, short, name) for name in ("3x3_2a", "3x3_2b")),
        *(chain(state, block, deep, name) for name in ("3x3dbl_3a", "3x3dbl_3b")),
        chain(state, block, pooled, "_pool"),
    ]
