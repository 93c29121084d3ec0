"""Models to export, and how tests export them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import Params, abstract_params
from lit_jax.models.registry import model_config
from support.live_parity import live_seed
from tools.convert_torch_ckpt import main

DIT = {"hidden_size": 16, "depth": 2, "num_heads": 2, "input_size": 8, "num_classes": 1000}
PIXART = {"hidden_size": 24, "depth": 3, "num_heads": 2, "input_size": 8, "caption_channels": 12}
PIXART |= {"model_max_length": 5, "pe_interpolation": 0.5}
COMPRESSED = {"kv_compress_config": {"kv_compress_layer": [1, 2]}, "qk_norm": True}
VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
NOTE = "note: a torch file carries no architecture; import it with "


def written_model(family: str, fields: dict[str, Any], seed: int = 0) -> Params:
    """A model folder `m` with random parameters."""
    config = model_config(family, **fields)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32),
        abstract_params(config),
    )
    save_model_dir("m", config, params, {})
    return params


def told_flags(printed: str) -> list[str]:
    """The flags that an export tells its reader to import the file with."""
    notes = [line for line in printed.splitlines() if line.startswith(NOTE)]
    assert len(notes) <= 1
    return notes[0].removeprefix(NOTE).split(" ") if notes else []


def exported(family: str, fields: dict[str, Any], layout: str, dst: str) -> tuple[Any, Params]:
    params = written_model(family, fields, live_seed())
    assert main(["--export", "--src", "m", "--dst", dst, "--layout", layout]) == 0
    Path("m").rename(f"m_{dst}")
    return model_config(family, **fields), params
