"""Formulas that DiT and PixArt share, in plain torch on the tensors of the official state dicts.

B batch, N tokens, D hidden size, h heads, d = D / h. Images are channels first, tokens row-major.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

State = Mapping[str, torch.Tensor]
Architecture = Mapping[str, Any]
Inputs = Mapping[str, torch.Tensor]
Outputs = dict[str, torch.Tensor]

TIMES = (0.0, 417.5, 999.0)
"""Timesteps of random inputs: both ends and a fraction, which no table of integers knows."""


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a field that holds a side or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def nominal_grid(architecture: Architecture) -> tuple[int, int]:
    """Return rows and columns of the token grid that `input_size` stands for."""
    height, width = pair(architecture["input_size"])
    return height // architecture["patch_size"], width // architecture["patch_size"]


def square_size(architecture: Architecture) -> int:
    """Return the side of a square `input_size`, the only kind that the classes of diffusers
    know."""
    height, width = pair(architecture["input_size"])
    if height != width:
        raise ValueError(
            f"input_size {height}x{width} is not square; the transformers of diffusers take one"
            " side. Compare with the official layout instead"
        )
    return height


def split_sigma(out: torch.Tensor, architecture: Architecture) -> Outputs:
    """Return [B, C or 2 C, H, W] as the noise and, with `learn_sigma`, the variance channels."""
    channels = architecture["in_channels"]
    parts = {"noise": out[:, :channels]}
    return parts | ({"variance": out[:, channels:]} if architecture["learn_sigma"] else {})


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return layer norm without parameters of its own, then the conditional shift and scale."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def affine_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return layer norm over all of D with weight and bias, epsilon 1e-5."""
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def scalar_embedding(state: State, name: str, values: torch.Tensor) -> torch.Tensor:
    """Return sinusoid and two-layer perceptron of scalars [B] -> [B, width]."""
    waves = sinusoid(values).to(state[f"{name}.mlp.0.weight"].dtype)
    return linear(state, f"{name}.mlp.2", F.silu(linear(state, f"{name}.mlp.0", waves)))


def sinusoid(values: torch.Tensor, width: int = 256) -> torch.Tensor:
    """Return [cos | sin] of values [B] times 10000 ** (-j / 128), -> [B, width]."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_table(rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Return [N, D] for the coordinates of the rows and of the columns of a grid.

    The first half of the channels encodes the column, the second the row, each as [sin | cos].
    """
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(rows.double(), columns.double(), indexing="ij")

    def encode(position: torch.Tensor) -> torch.Tensor:
        angles = position.reshape(-1, 1) * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    return torch.cat([encode(x), encode(y)], dim=1).float()


def patches(state: State, x: torch.Tensor, patch: int) -> torch.Tensor:
    """Return [B, C, H, W] -> [B, N, D]."""
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    return F.conv2d(x, weight, bias, stride=patch).flatten(2).mT


def unpatched(tokens: torch.Tensor, grid: tuple[int, int], patch: int) -> torch.Tensor:
    """Return [B, N, p p C] with the channel fastest -> [B, C, H, W]."""
    rows, columns = grid
    out = tokens.unflatten(-1, (patch, patch, -1)).unflatten(1, (rows, columns))
    return out.permute(0, 5, 1, 3, 2, 4).reshape(len(out), -1, rows * patch, columns * patch)


def perceptron(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    hidden = F.gelu(linear(state, f"{name}.fc1", x), approximate="tanh")
    return linear(state, f"{name}.fc2", hidden)


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Return [B, N, D] -> [B, h, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x: torch.Tensor) -> torch.Tensor:
    """Return [B, h, N, d] -> [B, N, D]."""
    return x.transpose(1, 2).flatten(2)


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return attention of q [B, N, D] to k, v [B, L, D]; keys are left out where `keep` [B, L] is
    0."""
    q, k, v = (split(a, heads) for a in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if keep is not None:
        scores = scores.masked_fill((keep == 0)[:, None, None], -math.inf)
    return merge(scores.softmax(dim=-1) @ v)


def window_attention(
    state: State,
    name: str,
    architecture: Architecture,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grid: tuple[int, int],
) -> torch.Tensor:
    """Return CLEAR: each of q [B, N, D] sees the keys at a distance below `window_size` and, where
    there are weights for them, sums over patches of keys and values."""
    q, k, v = qkv
    y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    seen = squares < architecture["window_size"] ** 2
    if (weight := state.get(f"{name}.spatial_weight")) is not None:
        f = weight.shape[3]
        shape = (grid[0] // f, f, grid[1] // f, f)
        weight = weight.reshape(1, 1, f, 1, f, 1)
        sums = [(a.unflatten(1, shape) * weight).sum(dim=(2, 4)).flatten(1, 2) for a in (k, v)]
        k, v = torch.cat([k, sums[0]], dim=1), torch.cat([v, sums[1]], dim=1)
        seen = F.pad(seen, (0, sums[0].shape[1]), value=True)
    q, k, v = (split(a, architecture["num_heads"]) for a in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return merge(scores.masked_fill(~seen, -math.inf).softmax(dim=-1) @ v)


def linear_attention(
    state: State, name: str, architecture: Architecture, x: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Return algorithm 1 of the LiT paper and its focused variant (FLatten), [B, N, D] -> [B, N,
    D]."""
    heads, focused = architecture["num_heads"], architecture["mixer"] == "focused"
    kernel = F.gelu if architecture["kernel_fn"] == "gelu" else F.relu
    k, v = linear(state, f"{name}.kv", x).chunk(2, dim=-1)
    if focused:
        k = k + state[f"{name}.positional_encoding"]
    q, k = kernel(linear(state, f"{name}.q", x)) + 1e-6, kernel(k) + 1e-6
    if focused:
        temperature = F.softplus(state[f"{name}.scale"])
        q, k = focus(q / temperature), focus(k / temperature)
    q, k, v = (split(a, heads) for a in (q, k, v))
    weights = 1 / (q @ k.mean(dim=-2, keepdim=True).mT + 1e-6)
    out = q @ (k.mT @ v / k.shape[-2]) * weights
    if f"{name}.dwc.weight" in state:
        out = out + depthwise(state, f"{name}.dwc", v, grid)
    return linear(state, f"{name}.proj", merge(out))


def focus(x: torch.Tensor) -> torch.Tensor:
    """Return fLatten: cube, then restore the norm over the full D axis."""
    cubed = x**3
    return cubed / cubed.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)


def depthwise(state: State, name: str, v: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return one set of d filters for every head, on the token grid; [B, h, N, d] -> the same."""
    weight = state[f"{name}.weight"]
    B, h, _, d = v.shape
    image = v.mT.reshape(B * h, d, *grid)
    out = F.conv2d(image, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=d)
    return out.reshape(B, h, d, -1).mT
