"""`--verify` of a CLEAR: its torch reference agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_jax.checkpoints.convert import export_params
from lit_jax.checkpoints.pairing import layout_named
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import model_config
from support.attention_cases import random_like
from tools.verification import VerificationError, verify

pytest.importorskip("torch")

SIZE: dict[str, Any] = {"hidden_size": 8, "depth": 2, "num_heads": 2, "input_size": 16}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "labels": ("CLEAR", "dit", {"num_classes": 3}),
    "captions, pooled": (
        "PixArt",
        "pixart",
        {"mixer": "window", "caption_channels": 3, "qk_norm": True, "down_factor": 4},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_reference_of_windows(case: str, tmp_path: Path) -> None:
    family, name, fields = CASES[case]
    config = model_config(family, window_size=3, **SIZE, **fields)
    params = random_like(abstract_params(config))
    layout = layout_named(config, name)
    state = export_params(params, config, layout)
    save_model_dir(tmp_path / "m", config, params, {"source": "random"})
    verify(state, layout, tmp_path / "m", "float32")
    state = {key: value * 1.1 if "qkv.weight" in key else value for key, value in state.items()}
    with pytest.raises(VerificationError, match="outputs differ"):
        verify(state, layout, tmp_path / "m", "float32")
