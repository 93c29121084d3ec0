"""A DiT / LiT forward pass in plain torch, to check converted weights against.

Independent of lit_jax: written from the papers (DiT: Peebles & Xie 2023; LiT: Algorithm 1) on the
official state dict, channels first, one function per layer. B batch, N tokens, D hidden size,
h heads, d = D / h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

State = Mapping[str, torch.Tensor]


def forward(
    state: State,
    config: Mapping[str, Any],
    x: torch.Tensor,
    t: torch.Tensor,
    y: torch.Tensor | None,
) -> torch.Tensor:
    """Output [B, C_out, H, W] for x [B, C, H, W], t [B], labels y [B] (None: unconditional).

    `config` is the architecture: patch_size, depth, num_heads, mixer, kernel_fn.
    """
    p = config["patch_size"]
    rows, columns = x.shape[2] // p, x.shape[3] // p
    tokens = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=p)
    tokens = tokens.flatten(2).mT
    tokens = tokens + position_table(rows, columns, tokens.shape[-1])
    c = linear(state, "t_embedder.mlp.2", F.silu(linear(state, "t_embedder.mlp.0", sinusoid(t))))
    if y is not None:
        c = c + state["y_embedder.embedding_table.weight"][y]
    c = F.silu(c)
    for i in range(config["depth"]):
        prefix = f"blocks.{i}"
        m = linear(state, f"{prefix}.adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
        mixed = mix(state, f"{prefix}.attn", config, norm(tokens, m[0], m[1]), (rows, columns))
        tokens = tokens + m[2] * mixed
        hidden = linear(state, f"{prefix}.mlp.fc1", norm(tokens, m[3], m[4]))
        hidden = F.gelu(hidden, approximate="tanh")
        tokens = tokens + m[5] * linear(state, f"{prefix}.mlp.fc2", hidden)
    m = linear(state, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
    out = linear(state, "final_layer.linear", norm(tokens, m[0], m[1]))
    out = out.unflatten(-1, (p, p, -1)).unflatten(1, (rows, columns))
    return out.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], -1, rows * p, columns * p)


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def sinusoid(t: torch.Tensor, width: int = 256) -> torch.Tensor:
    """[cos | sin] of t times 10000 ** (-j / 128)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_table(rows: int, columns: int, width: int) -> torch.Tensor:
    """[N, D]: half of the channels for the column, half for the row, each [sin | cos]."""
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(position: torch.Tensor) -> torch.Tensor:
        angles = position.double()[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    index = torch.arange(rows * columns)
    return torch.cat([encode(index % columns), encode(index // columns)], dim=1).float()


def mix(
    state: State, name: str, config: Mapping[str, Any], x: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Self-attention of one block, [B, N, D] -> [B, N, D]."""
    heads = config["num_heads"]
    if config["mixer"] == "softmax":
        q, k, v = (split(a, heads) for a in linear(state, f"{name}.qkv", x).chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return linear(state, f"{name}.proj", merge(scores.softmax(dim=-1) @ v))
    kernel = F.gelu if config["kernel_fn"] == "gelu" else F.relu
    k, v = linear(state, f"{name}.kv", x).chunk(2, dim=-1)
    if config["mixer"] == "focused":
        k = k + state[f"{name}.positional_encoding"]
    q, k = kernel(linear(state, f"{name}.q", x)) + 1e-6, kernel(k) + 1e-6
    if config["mixer"] == "focused":
        temperature = F.softplus(state[f"{name}.scale"])
        q, k = focus(q / temperature), focus(k / temperature)
    q, k, v = (split(a, heads) for a in (q, k, v))
    weights = 1 / (q @ k.mean(dim=-2, keepdim=True).mT + 1e-6)
    out = q @ (k.mT @ v / k.shape[-2]) * weights
    if f"{name}.dwc.weight" in state:
        out = out + depthwise(state, f"{name}.dwc", v, grid)
    return linear(state, f"{name}.proj", merge(out))


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, D] -> [B, h, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x: torch.Tensor) -> torch.Tensor:
    """[B, h, N, d] -> [B, N, D]."""
    return x.transpose(1, 2).flatten(2)


def focus(x: torch.Tensor) -> torch.Tensor:
    """FLatten: cube, then restore the norm over the full D axis."""
    cubed = x**3
    return cubed / cubed.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)


def depthwise(state: State, name: str, v: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """One set of d filters for every head, on the token grid; [B, h, N, d] -> the same."""
    weight = state[f"{name}.weight"]
    B, h, _, d = v.shape
    image = v.mT.reshape(B * h, d, *grid)
    out = F.conv2d(image, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=d)
    return out.reshape(B, h, d, -1).mT
