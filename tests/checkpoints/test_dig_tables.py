"""DiG checkpoints: what shapes tell, strictness, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import model_config
from support.attention_cases import random_like
from support.golden_cases import COPIES, load_meta, load_state_dict

TINY = {"input_size": 4, "hidden_size": 16, "depth": 4, "num_heads": 2, "num_classes": 5}


def exported(config: DiGConfig) -> dict[str, np.ndarray]:
    return export_params(random_like(abstract_params(config)), config, "dig")


@pytest.mark.parametrize("case", ["dig_dwconv_qdir", "dig_dwconv_qdir_skip"])
def test_official_files_need_no_flags_and_come_back_bit_by_bit(case: str) -> None:
    official = load_state_dict(COPIES, case)
    config = detect_config(official)
    assert config == model_config("DiG", **load_meta(COPIES, case)["config"])
    assert layout_of(official).name == "dig"
    params, _ = import_params(official, config)
    back = export_params(params, config, "dig")
    assert set(back) == set(official)
    for key, value in official.items():
        if key == "pos_embed":  # recomputed; sines may differ in the last place between machines
            np.testing.assert_allclose(back[key], value, rtol=0, atol=2e-7)
        else:
            np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_heads": 4, "expand_k": 0.25, "expand_v": 1.5},
        {"skip": True, "depth": 6},
        {"num_classes": 0},
        {"dw_conv": False},
        {"conv_kernel_size": 5, "learn_sigma": False},
        {"class_dropout_prob": 0.0},
    ],
    ids=str,
)
def test_shapes_tell_everything_but_the_order(fields: dict[str, Any]) -> None:
    config = model_config("DiG", **(TINY | fields))
    state = exported(config)
    told = {"class_dropout_prob": 0.0} if "class_dropout_prob" in fields else {}
    assert detect_config(state, "DiG", told) == config
    # What no tensor tells is what was said, under the official names, too.
    ordered = detect_config(state, "DiG", told | {"bid_mode": "seq", "if_quad_dir": False})
    assert (ordered.bid_mode, ordered.quad_dir) == ("seq", False)


def test_a_named_size_is_checked() -> None:
    state = exported(model_config("DiG", **TINY))
    with pytest.raises(ValueError, match=r"not --model DiG-S/2:(.|\n)*depth: asked for 12, the"):
        detect_config(state, "DiG-S/2")
    with pytest.raises(ValueError, match=r"not --model DiT: its keys are those of DiG"):
        detect_config(state, "DiT")
    with pytest.raises(ValueError, match="skip: asked for True, the checkpoint has False"):
        detect_config(state, "DiG", {"if_skip": True})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("blocks.0.attn.g_norm_swish_gate.weight", (5,), "has 5 channels, which do not divide the"),
        ("blocks.0.mlp.down_proj.weight", (16, 100), "has 100 columns; the inner width of the MLP"),
        ("blocks.0.attn.q_proj.weight", None, "key 'blocks.0.attn.q_proj.weight' is missing"),
    ],
)
def test_broken_files(key: str, shape: tuple[int, ...] | None, message: str) -> None:
    state = exported(model_config("DiG", **TINY))
    del state[key]
    if shape is not None:
        state[key] = np.zeros(shape, "f4")
    with pytest.raises(ValueError, match=message):
        detect_config(state)


def test_all_problems_come_in_one_error() -> None:
    config = model_config("DiG", **TINY, skip=True)
    state = exported(config)
    del state["blocks.2.attn.gk_proj.1.bias"]
    state["blocks.1.skip_linear.bias"] = np.zeros(16, "f4")
    with pytest.raises(ValueError, match=r"2 problem\(s\)") as error:
        import_params(state, config)
    assert "unused key 'blocks.1.skip_linear.bias' (16,)" in str(error.value)
    assert "key 'blocks.2.attn.gk_proj.1.bias' (8,) is missing" in str(error.value)
