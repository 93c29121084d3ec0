"""PixArt-alpha, PixArt-Sigma and text-to-image LiT: the official network in plain torch, and
that of diffusers.

Written from the papers (PixArt-alpha: Chen et al. 2023; PixArt-Sigma: Chen et al. 2024). B batch,
N tokens, D hidden size, L text tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tools.torch_reference.layers import (
    TIMES,
    Architecture,
    Inputs,
    Outputs,
    State,
    affine_norm,
    linear,
    linear_attention,
    modulated,
    nominal_grid,
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

LARGEST_GRID = (16, 24)
"""Rows and columns of random inputs at most. Positions are relative to the nominal grid, so that a
small image exercises a 2K model as well as a large one would."""

RELEASED_HEADS = {1152: 16}
"""Hidden size of the published models -> heads, which a linear student keeps in cross-attention."""

MICRO_INPUTS = {"resolution": "img_hw", "aspect_ratio": "aspect_ratio"}
"""Name of a size condition in diffusers -> official name."""

SPARE_KEYS = ("caption_projection.y_embedding", "pos_embed.pos_embed")
"""Buffers that files of older diffusers hold beside the weights; the network does not read them."""


def random_inputs(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return x [3, C, H, W] (not square), t [3], tokens [3, L, channels], mask [3, L]; with
    `micro_condition` also img_hw [3, 2] and aspect_ratio [3, 1].

    The masks keep all tokens, the first third, and a pattern that is no prefix.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, patch = len(TIMES), architecture["patch_size"]
    rows, columns = random_grid(architecture)
    size = (rows * patch, columns * patch)
    length = architecture["model_max_length"] or 120
    tokens = torch.randn(batch, length, architecture["caption_channels"], generator=generator)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1, max(1, length // 3) :] = 0
    mask[2] = torch.arange(length) % 3 != length % 3  # holes, but the last token is kept
    inputs = {
        "x": torch.randn(batch, architecture["in_channels"], *size, generator=generator),
        "t": torch.tensor(TIMES),
        "tokens": tokens,
        "mask": mask,
    }
    if architecture["micro_condition"]:
        inputs["img_hw"] = torch.tensor([[512.0, 768.0], [1024.0, 256.0], [1024.0, 1024.0]])
        inputs["aspect_ratio"] = torch.tensor([[0.67], [4.0], [1.0]])
    return inputs


def random_grid(architecture: Architecture) -> tuple[int, int]:
    """Return a grid that is not square, where the network takes one."""
    nominal = nominal_grid(architecture)
    if architecture["mixer"] == "focused":
        return nominal  # its position encoding belongs to one grid
    compression = architecture["kv_compress_config"]
    step = compression["scale_factor"] if compression else architecture["down_factor"] or 1
    rows = min(nominal[0], LARGEST_GRID[0])
    columns = min(nominal[1] * 3 // 2, LARGEST_GRID[1])
    return max(rows // step, 1) * step, max(columns // step, 1) * step


def official(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return the official forward pass, for the inputs of `random_inputs` (without mask: all
    tokens)."""
    x, patch = inputs["x"], architecture["patch_size"]
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    tokens = patches(state, x, patch)
    tokens = tokens + positions(architecture, grid, tokens.shape[-1])
    t = conditioning(state, architecture, inputs)
    shared = linear(state, "t_block.1", F.silu(t)).unflatten(-1, (6, -1))
    text = perceptron(state, "y_embedder.y_proj", inputs["tokens"])
    for i in range(architecture["depth"]):
        name = f"blocks.{i}"
        m = (state[f"{name}.scale_shift_table"] + shared).chunk(6, dim=1)
        mixed = mix(state, i, architecture, modulated(tokens, m[0], m[1]), grid)
        tokens = tokens + m[2] * mixed
        tokens = tokens + attend_text(state, name, architecture, tokens, text, inputs.get("mask"))
        tokens = tokens + m[5] * perceptron(state, f"{name}.mlp", modulated(tokens, m[3], m[4]))
    m = (state["final_layer.scale_shift_table"] + t[:, None]).chunk(2, dim=1)
    out = linear(state, "final_layer.linear", modulated(tokens, m[0], m[1]))
    return split_sigma(unpatched(out, grid, patch), architecture)


def positions(architecture: Architecture, grid: tuple[int, int], width: int) -> torch.Tensor:
    """Return [N, D]: coordinates are scaled to the nominal grid, then divided by
    `pe_interpolation`."""
    rows, columns = (
        torch.arange(count, dtype=torch.float32) / (count / base) / architecture["pe_interpolation"]
        for count, base in zip(grid, nominal_grid(architecture), strict=True)
    )
    return position_table(rows, columns, width)


def conditioning(state: State, architecture: Architecture, inputs: Inputs) -> torch.Tensor:
    """Return [B, D]: the timestep and, with `micro_condition`, height, width and aspect ratio."""
    t = scalar_embedding(state, "t_embedder", inputs["t"])
    if not architecture["micro_condition"]:
        return t
    height_width, ratio = inputs["img_hw"], inputs["aspect_ratio"].reshape(-1)
    parts = [scalar_embedding(state, "csize_embedder", height_width[:, axis]) for axis in (0, 1)]
    return t + torch.cat([*parts, scalar_embedding(state, "ar_embedder", ratio)], dim=-1)


def mix(
    state: State, block: int, architecture: Architecture, x: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """Return self-attention of one block, [B, N, D] -> [B, N, D]."""
    name, compression = f"blocks.{block}.attn", architecture["kv_compress_config"]
    if architecture["mixer"] not in ("softmax", "window"):
        return linear_attention(state, name, architecture, x, grid)
    q, k, v = linear(state, f"{name}.qkv", x).chunk(3, dim=-1)
    if architecture["qk_norm"]:
        q, k = affine_norm(state, f"{name}.q_norm", q), affine_norm(state, f"{name}.k_norm", k)
    if compression and block in compression["kv_compress_layer"]:
        factor, sampling = compression["scale_factor"], compression["sampling"]
        k, v = (fewer(state, name, a, grid, factor, sampling) for a in (k, v))
    if architecture["mixer"] == "window":
        mixed = window_attention(state, name, architecture, (q, k, v), grid)
        return linear(state, f"{name}.proj", mixed)
    return linear(state, f"{name}.proj", softmax_attention(q, k, v, architecture["num_heads"]))


def fewer(
    state: State, name: str, x: torch.Tensor, grid: tuple[int, int], factor: int, sampling: str
) -> torch.Tensor:
    """Return keys or values [B, N, D] on a grid that is coarser by `factor` per axis.

    `uniform_every` thins the token sequence instead, by `factor` in all.
    """
    if factor == 1:
        return x
    if sampling == "uniform_every":
        return x[:, ::factor]
    image = x.mT.unflatten(-1, grid)
    if sampling == "uniform":
        coarse = image[:, :, ::factor, ::factor]
    elif sampling == "ave":  # nearest neighbours, whatever the name says
        coarse = F.interpolate(image, scale_factor=1 / factor, mode="nearest")
    else:
        weight, bias = state[f"{name}.sr.weight"], state[f"{name}.sr.bias"]
        coarse = F.conv2d(image, weight, bias, stride=factor, groups=x.shape[-1])
    coarse = coarse.flatten(2).mT
    return affine_norm(state, f"{name}.norm", coarse) if sampling == "conv" else coarse


def attend_text(
    state: State,
    name: str,
    architecture: Architecture,
    x: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return cross-attention: no norm, no gate; text tokens with mask 0 are not seen."""
    q = linear(state, f"{name}.cross_attn.q_linear", x)
    k, v = linear(state, f"{name}.cross_attn.kv_linear", text).chunk(2, dim=-1)
    attended = softmax_attention(q, k, v, cross_heads(architecture), mask)
    return linear(state, f"{name}.cross_attn.proj", attended)


def cross_heads(architecture: Architecture) -> int:
    """Return heads of the cross-attention, which is softmax attention whatever the mixer."""
    heads: int = architecture["num_heads"]
    if architecture["cross_num_heads"] is not None:
        return int(architecture["cross_num_heads"])
    if architecture["mixer"] in ("softmax", "window"):
        return heads
    return RELEASED_HEADS.get(architecture["hidden_size"], heads)


def diffusers(state: State, architecture: Architecture, inputs: Inputs) -> Outputs:
    """Return pixArtTransformer2DModel, whose numbers are those of the official network."""
    module = library("diffusers")
    heads, side = architecture["num_heads"], square_size(architecture)
    if (cross := cross_heads(architecture)) != heads:
        raise ValueError(
            f"cross_num_heads is {cross} and num_heads {heads}; diffusers has one number for both"
        )
    settings = {
        "num_attention_heads": heads,
        "attention_head_dim": architecture["hidden_size"] // heads,
        "in_channels": architecture["in_channels"],
        "out_channels": architecture["in_channels"] * (2 if architecture["learn_sigma"] else 1),
        "num_layers": architecture["depth"],
        "cross_attention_dim": architecture["hidden_size"],
        "sample_size": side,
        "patch_size": architecture["patch_size"],
        "interpolation_scale": architecture["pe_interpolation"],
        "use_additional_conditions": architecture["micro_condition"],
        "caption_channels": architecture["caption_channels"],
    }
    weights = {key: value for key, value in state.items() if key not in SPARE_KEYS}
    model = filled(lambda: module.PixArtTransformer2DModel(**settings), weights)
    micro = architecture["micro_condition"]
    sizes = {k: inputs[v] if micro else None for k, v in MICRO_INPUTS.items()}
    out = model(
        inputs["x"],
        encoder_hidden_states=inputs["tokens"],
        timestep=inputs["t"],
        added_cond_kwargs=sizes,
        encoder_attention_mask=inputs.get("mask"),
    ).sample
    return split_sigma(out, architecture)
