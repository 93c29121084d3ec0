"""DiT and LiT on class labels: the official network in plain torch, and that of diffusers.

Written from the papers (DiT: Peebles & Xie 2023; LiT: Algorithm 1). B batch, N tokens, D hidden
size, C input channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tools.torch_reference.layers import (
    TIMES,
    Architecture,
    Inputs,
    Outputs,
    State,
    linear,
    linear_attention,
    modulated,
    nominal_grid,
    pair,
    patches,
    perceptron,
    position_table,
    scalar_embedding,
    softmax_attention,
    split_sigma,
    square_size,
    unpatched,
    window_attention,
)
from tools.torch_reference.library import filled, library


def random_inputs(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return x [3, C, H, W], t [3] and, for a model with labels, y [3].

    The last row of the label table is among the labels, which is the null class where there is one.
    """
    generator = torch.Generator().manual_seed(seed)
    size = pair(architecture["input_size"])
    x = torch.randn(len(TIMES), architecture["in_channels"], *size, generator=generator)
    inputs = {"x": x, "t": torch.tensor(TIMES)}
    if classes := architecture["num_classes"]:
        last = classes if architecture["class_dropout_prob"] > 0 else classes - 1
        inputs["y"] = torch.tensor([0, last // 2, last])
    return inputs


def official(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return the official forward pass, for x [B, C, H, W], t [B] and y [B] (left out:
    unconditional)."""
    patch, grid = architecture["patch_size"], nominal_grid(architecture)
    tokens = patches(state, inputs["x"], patch)
    tokens = tokens + positions(state, grid, tokens.shape[-1])
    c = scalar_embedding(state, "t_embedder", inputs["t"])
    if "y" in inputs:
        c = c + state["y_embedder.embedding_table.weight"][inputs["y"]]
    c = F.silu(c)
    for i in range(architecture["depth"]):
        name = f"blocks.{i}"
        m = linear(state, f"{name}.adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
        mixed = mix(state, f"{name}.attn", architecture, modulated(tokens, m[0], m[1]), grid)
        tokens = tokens + m[2] * mixed
        tokens = tokens + m[5] * perceptron(state, f"{name}.mlp", modulated(tokens, m[3], m[4]))
    m = linear(state, "final_layer.adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
    out = linear(state, "final_layer.linear", modulated(tokens, m[0], m[1]))
    return split_sigma(unpatched(out, grid, patch), architecture)


def positions(state: State, grid: tuple[int, int], width: int) -> torch.Tensor:
    """Return the position table of the file, which the official network would load; else the
    formula."""
    if "pos_embed" in state:
        return state["pos_embed"]
    return position_table(torch.arange(grid[0]), torch.arange(grid[1]), width)


def mix(
    state: State, name: str, architecture: Architecture, x: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Return self-attention of one block, [B, N, D] -> [B, N, D]."""
    if architecture["mixer"] not in ("softmax", "window"):
        return linear_attention(state, name, architecture, x, grid)
    q, k, v = linear(state, f"{name}.qkv", x).chunk(3, dim=-1)
    if architecture["mixer"] == "window":
        mixed = window_attention(state, name, architecture, (q, k, v), grid)
        return linear(state, f"{name}.proj", mixed)
    return linear(state, f"{name}.proj", softmax_attention(q, k, v, architecture["num_heads"]))


def diffusers(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return DiTTransformer2DModel with the constants of the official network.

    Left alone, that class spreads the frequencies of the timestep to 1 / 10000 inclusive (the
    official ones stop one short) and uses 1e-5 in the second norm of a block (official: 1e-6).
    """
    model = use_constants(build(state, architecture), official=True)
    return split_sigma(call(model, inputs), architecture)


def deviation(state: State, architecture: Architecture, inputs: Inputs) -> float:
    """Return how far diffusers' own constants move the output from that of the official ones.

    Max |difference| over all outputs, relative to max |output with the official constants|.
    """
    model = build(state, architecture)
    own = call(use_constants(model, official=False), inputs)
    expected = call(use_constants(model, official=True), inputs)
    return float((own - expected).abs().max() / expected.abs().max())


def build(state: State, architecture: Architecture) -> Any:
    """Return diffusers' DiTTransformer2DModel around the tensors of `state`."""
    module = library("diffusers")
    if not architecture["num_classes"]:
        raise ValueError("num_classes is 0; diffusers has no DiT without labels")
    heads, side = architecture["num_heads"], square_size(architecture)
    settings = {
        "num_attention_heads": heads,
        "attention_head_dim": architecture["hidden_size"] // heads,
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["in_channels"] * (2 if architecture["learn_sigma"] else 1),
        "num_layers": architecture["depth"],
        "attention_bias": architecture["qkv_bias"],
        "sample_size": side,
        "patch_size": architecture["patch_size"],
        "num_embeds_ada_norm": architecture["num_classes"],
    }
    return filled(lambda: module.DiTTransformer2DModel(**settings), state)


def use_constants(model: Any, official: bool) -> Any:
    """Set the two constants in which diffusers differs, in place; return the model."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0 if official else 1
        block.norm3.eps = 1e-6 if official else 1e-5
    return model


def call(model: Any, inputs: Inputs) -> torch.Tensor:
    """Return [B, C or 2 C, H, W]."""
    return model(inputs["x"], timestep=inputs["t"], class_labels=inputs["y"]).sample
