"""PixArt in the layout of diffusers, and its config.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.models.pixart.config import KVCompressConfig
from lit_jax.models.pixart.detect import from_hub
from lit_jax.models.registry import model_config
from support.pixart_cases import (
    state_like,
    tiny,
)


def test_the_null_caption_of_early_diffusers_files() -> None:
    """Transformer2DModel files may carry it: it is kept, or dropped where that is asked for; what
    is written has none, because the present class has no place for it."""
    config = tiny(model_max_length=6, input_size=8)
    index = [layout.name for layout in layouts_for(config)].index("diffusers")
    state = state_like(config, index)
    assert "caption_projection.y_embedding" in state
    said = {"num_heads": 2, "input_size": 8, "pe_interpolation": 1.0}
    found = detect_config(state, None, said)
    assert found.model_max_length == 6
    params, _ = import_params(state, found)
    np.testing.assert_array_equal(
        params["y_embedder"]["null_caption"], state["caption_projection.y_embedding"]
    )
    exported = export_params(params, found, "diffusers")
    assert set(state) - set(exported) == {"caption_projection.y_embedding"}
    without = detect_config(state, None, said | {"model_max_length": None})
    params, report = import_params(state, without)
    assert "null_caption" not in params["y_embedder"]
    assert "early file" in report.dropped["caption_projection.y_embedding"]


def test_diffusers_holds_only_what_its_class_can_be() -> None:
    """Each of these would load there and compute something else."""
    for fields in (
        {"qk_norm": True},
        {"kv_compress_config": KVCompressConfig("ave", 2, (1,))},
        {"mixer": "linear"},
        {"mlp_ratio": 3.0},
        {"input_size": (8, 16)},
        {"qkv_bias": False},
        {"cross_num_heads": 4},
    ):
        assert "diffusers" not in [layout.name for layout in layouts_for(tiny(**fields))], fields
    assert [layout.name for layout in layouts_for(tiny())] == ["pixart", "diffusers"]


SIGMA = {
    "_class_name": "Transformer2DModel",
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "num_layers": 28,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "caption_channels": 4096,
    "norm_type": "ada_norm_single",
    "norm_eps": 1e-6,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}


def test_fields_of_a_diffusers_config() -> None:
    fields = from_hub(SIGMA)
    expected = {"num_heads": 16, "hidden_size": 1152, "depth": 28, "caption_channels": 4096}
    expected |= {"input_size": 128, "pe_interpolation": 2.0, "micro_condition": False}
    expected |= {"patch_size": 2, "in_channels": 4, "learn_sigma": True}
    assert fields == expected


@pytest.mark.parametrize(("side", "scale"), [(32, 1.0), (64, 1.0), (128, 2.0), (256, 4.0)])
def test_position_scale_that_a_config_leaves_out(side: int, scale: float) -> None:
    """And micro-conditions then are what the weights say."""
    silent = SIGMA | {"sample_size": side, "interpolation_scale": None}
    silent["use_additional_conditions"] = None
    fields = from_hub(silent)
    assert fields["pe_interpolation"] == scale and "micro_condition" not in fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "SD3Transformer2DModel"}, "_class_name is 'SD3Transformer2DModel'"),
        ({"norm_type": "ada_norm_zero"}, "norm_type is 'ada_norm_zero'; PixArt needs"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05; PixArt needs 1e-06"),
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu'"),
        ({"attention_bias": False}, "attention_bias is False; PixArt needs True"),
        ({"attention_type": "gated"}, "attention_type is 'gated'"),
        ({"cross_attention_dim": 768}, "cross_attention_dim is 768; PixArt needs 1152"),
        ({"cross_attention_dim": None}, "cross_attention_dim is None; PixArt needs 1152"),
        ({"caption_channels": None}, "caption_channels missing; PixArt needs them"),
        ({"sample_size": "16"}, r"config.json.sample_size is '16' \(str\); it must be int"),
        ({"num_attention_heads": "16"}, r"num_attention_heads is '16' \(str\); it must be int"),
        ({"interpolation_scale": "1.0x"}, "interpolation_scale is '1.0x' .*must be float"),
        ({"use_additional_conditions": 1}, "use_additional_conditions is 1 .*must be bool"),
        ({"cross_attention_dim": "1152"}, "cross_attention_dim is '1152'; PixArt needs 1152"),
        ({"norm_eps": "1e-6"}, "norm_eps is '1e-6'; PixArt needs 1e-06"),
        ({"_class_name": ["PixArt"]}, r"_class_name is \['PixArt'\]"),
        ({"num_layers": None, "in_channels": None}, "num_layers, in_channels missing"),
        ({"out_channels": 6}, "out_channels is 6; PixArt needs in_channels 4, or twice that"),
    ],
)
def test_configs_that_this_class_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_hub(SIGMA | change)


def test_a_config_that_contradicts_the_weights() -> None:
    config = tiny(model_max_length=None)
    index = [layout.name for layout in layouts_for(config)].index("diffusers")
    hub = SIGMA | {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24}
    hub |= {"num_layers": 4, "in_channels": 3, "out_channels": 6, "caption_channels": 10}
    with pytest.raises(ValueError, match="depth: config.json says 4, the checkpoint has 3"):
        detect_config(state_like(config, index), hub=hub)
    with pytest.raises(ValueError, match="micro_condition: config.json says True"):
        detect_config(
            state_like(config, index),
            hub=hub | {"num_layers": 3, "use_additional_conditions": True},
        )


def test_official_words_for_no_compression_and_no_null_caption() -> None:
    """The official configuration's default, and a constructor argument that a file lacks."""
    none = {"sampling": None, "scale_factor": 1, "kv_compress_layer": []}
    assert model_config("PixArt", kv_compress_config=none).kv_compress_config is None
    one = {"sampling": "conv", "scale_factor": 2, "kv_compress_layer": 3}
    assert model_config("PixArt", kv_compress_config=one).compressed_layers == (3,)
