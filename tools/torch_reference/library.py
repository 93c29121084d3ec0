"""Models of other libraries around tensors that are already there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from tools.torch_reference.layers import State


def library(name: str) -> Any:
    """Return the module `name`; ValueError that says what to install when it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"the original of this network is the one of {name}, which cannot be imported"
            f" ({error}): pip install 'lit_jax[verify]'"
        ) from error


def filled(
    build: Callable[[], Any],
    state: State,
    rename: Callable[[Any, State], State] = lambda model, state: state,
) -> Any:
    """Return what `build` returns, in evaluation mode, holding the tensors of `state` themselves.

    `rename` gives the state dict with the names of the library of today. Nothing is allocated for
    weights, so they are in memory once. Raises ValueError where names or shapes differ from those
    of the library.
    """
    with torch.device("meta"):
        model = build()
    compute_tables(model)
    try:
        model.load_state_dict(dict(rename(model, state)), strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the library's model does not take these weights: {error}") from error
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"{name} of {type(model).__name__} is in no file and has no formula")
    return model.eval()


def compute_tables(model: Any) -> None:
    """Build diffusers' patch embedding again, with memory: its position table is in no file."""
    embedding = getattr(model, "pos_embed", None)
    if embedding is None:
        return
    model.pos_embed = type(embedding)(
        height=model.height,
        width=model.width,
        patch_size=embedding.patch_size,
        in_channels=embedding.proj.in_channels,
        embed_dim=embedding.proj.out_channels,
        interpolation_scale=embedding.interpolation_scale,
    )
