"""DiG on class labels: the official network in plain torch.

Written from the papers (DiG: Zhu et al. 2024; gated linear attention: Yang et al. 2023), token by
token. B batch, N tokens, D hidden size, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tools.torch_reference.dit import positions
from tools.torch_reference.layers import (
    Architecture,
    Inputs,
    Outputs,
    State,
    linear,
    merge,
    modulated,
    nominal_grid,
    patches,
    scalar_embedding,
    split,
    split_sigma,
    unpatched,
)


def official(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return the official forward pass, for x [B, C, H, W], t [B] and y [B] (left out:
    unconditional)."""
    patch, depth = architecture["patch_size"], architecture["depth"]
    grid = nominal_grid(architecture)
    tokens = patches(state, inputs["x"], patch)
    tokens = tokens + positions(state, grid, tokens.shape[-1])
    c = scalar_embedding(state, "t_embedder", inputs["t"])
    if "y" in inputs:
        c = c + state["y_embedder.embedding_table.weight"][inputs["y"]]
    c = F.silu(c)
    rows, columns = grid
    waiting: list[torch.Tensor] = []
    for i in range(depth):
        name = f"blocks.{i}"
        if architecture["skip"] and i > depth // 2:
            tokens = linear(state, f"{name}.skip_linear", torch.cat([tokens, waiting.pop()], -1))
        tokens = block(state, name, architecture, tokens, c, (rows, columns))
        if architecture["bid_mode"] == "layer":
            tokens = tokens.flip(1)
        if architecture["quad_dir"] and i % 2 == 1:
            tokens = tokens.unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
            rows, columns = columns, rows
        if architecture["skip"] and i < depth // 2 - 1:
            waiting.append(tokens)
    if "y" in inputs:
        shift, scale = linear(state, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    else:
        shift = scale = torch.zeros(())
    out = linear(state, "final_layer.linear", modulated(tokens, shift, scale))
    return split_sigma(unpatched(out, grid, patch), architecture)


def block(
    state: State,
    name: str,
    architecture: Architecture,
    x: torch.Tensor,
    c: torch.Tensor,
    grid: tuple[int, int],
) -> torch.Tensor:
    """Return attention, MLP, then the convolution of the whole stream: [B, N, D] -> [B, N, D]."""
    m = linear(state, f"{name}.adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
    mixed = attention(state, f"{name}.attn", architecture["num_heads"], modulated(x, m[0], m[1]))
    x = x + m[2] * mixed
    gate, value = linear(state, f"{name}.mlp.gate_proj", modulated(x, m[3], m[4])).chunk(2, dim=-1)
    x = x + m[5] * linear(state, f"{name}.mlp.down_proj", F.silu(gate) * value)
    if not architecture["dw_conv"]:
        return x
    weight, bias = state[f"{name}.dw_conv.weight"], state[f"{name}.dw_conv.bias"]
    image = x.mT.unflatten(-1, grid)
    out = F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return out.flatten(2).mT


def attention(state: State, name: str, heads: int, x: torch.Tensor) -> torch.Tensor:
    """Return gated linear attention along the tokens as they come, [B, N, D] -> [B, N, D]."""
    q, k, v, g = (split(linear(state, f"{name}.{p}_proj", x), heads) for p in "qkvg")
    gk = linear(state, f"{name}.gk_proj.1", linear(state, f"{name}.gk_proj.0", x))
    decay = (F.logsigmoid(split(gk, heads)) / 16).exp()
    memory = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[2]):
        memory = decay[:, :, t, :, None] * memory + k[:, :, t, :, None] * v[:, :, t, None]
        out.append((q[:, :, t, None] @ memory)[:, :, 0])
    o = torch.stack(out, dim=2) * q.shape[-1] ** -0.5
    o = o * (o.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    o = o * state[f"{name}.g_norm_swish_gate.weight"] * F.silu(g)
    return linear(state, f"{name}.o_proj", merge(o))
