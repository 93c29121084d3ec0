"""DiG through the converter: torch files, --verify, the way back; options against plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from support.attention_cases import random_like, sine_input

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file

from lit_jax.checkpoints.convert import export_params
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.family import architecture
from lit_jax.models.functional import abstract_params, apply_fn
from lit_jax.models.registry import model_config
from support.golden_cases import COPIES, load_meta, load_state_dict, nhwc, relative_error
from support.reference_cases import FORWARD, error, joined, sources, tensors, weights
from tools import torch_reference
from tools.convert_torch_ckpt import main

TINY = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
TINY |= {"in_channels": 3}


@sources("dig_dwconv_qdir", "dig_dwconv_qdir_skip")
def test_reference(case: str, folder: Path) -> None:
    """The plain torch original gives the golden outputs, so a verify can be trusted."""
    fields = architecture(model_config("DiG", **load_meta(folder, case)["config"]))
    arrays = tensors(folder, case)
    inputs = {name: arrays[name] for name in ("x", "t", "y")}
    out = joined(torch_reference.outputs(weights(case, folder), "DiG/dig", fields, inputs))
    assert error(out, arrays["out"]) < FORWARD


def test_training_checkpoint_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file as the official train script writes it; the moving average is the default."""
    case = "dig_dwconv_qdir"
    ema = {key: torch.from_numpy(value) for key, value in load_state_dict(COPIES, case).items()}
    model = {key: value if key == "pos_embed" else -value for key, value in ema.items()}
    torch.save({"model": model, "ema": ema, "opt": {}, "args": {}}, tmp_path / "dig.pt")
    assert main(["--src", str(tmp_path / "dig.pt"), "--dst", str(tmp_path / "m"), "--verify"]) == 0
    assert "no tensor records in which order a DiG scans its tokens" in capsys.readouterr().out
    back = tmp_path / "dig.safetensors"
    export = ["--export", "--src", str(tmp_path / "m"), "--dst", str(back), "--layout", "dig"]
    assert main(export) == 0
    stored = load_file(back)
    assert set(stored) == set(ema)
    for key, value in ema.items():
        if key != "pos_embed":
            np.testing.assert_array_equal(stored[key], value.numpy(), err_msg=key)


@pytest.mark.parametrize(
    "fields",
    [
        {"input_size": (4, 6), "depth": 6, "skip": True},
        {"bid_mode": "seq", "conv_kernel_size": 5, "expand_k": 0.25, "expand_v": 1.5},
        {"quad_dir": False, "num_classes": 0, "learn_sigma": False},
        {"dw_conv": False, "depth": 3, "mlp_ratio": 3.0},
    ],
    ids=str,
)
def test_every_option_against_plain_torch(fields: dict[str, Any]) -> None:
    """No option may be without effect here and have one there."""
    config: DiGConfig = model_config("DiG", **(TINY | fields))
    params = random_like(abstract_params(config))
    state = {k: torch.from_numpy(v) for k, v in export_params(params, config, "dig").items()}
    x = sine_input((2, *config.image_size, 3), 0.3)
    t, labels = np.array([3.0, 417.5], "f4"), np.array([1, 5])
    inputs = {"x": torch.from_numpy(np.moveaxis(x, -1, 1).copy()), "t": torch.from_numpy(t)}
    inputs |= {"y": torch.from_numpy(labels)} if config.num_classes else {}
    expected = joined(torch_reference.outputs(state, "DiG/dig", architecture(config), inputs))
    given = (x, t, labels if config.num_classes else None)
    out = jax.jit(apply_fn(config))(params, *given)
    assert relative_error(out, nhwc(expected.numpy())) < 1e-5
