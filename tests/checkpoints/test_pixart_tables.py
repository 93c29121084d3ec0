"""Key tables of PixArt and of the text-to-image LiT, in both directions, and detection."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of, layouts_for
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.conditions import TextCondition
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.models.pixart.model import position_table
from support.golden_cases import golden_folders, load_arrays, load_meta, nhwc, relative_error
from support.pixart_cases import (
    CASES,
    forward,
    golden_model,
    golden_sources_of,
    golden_state,
    state_like,
    tiny,
)

# --- official files ---


@pytest.mark.parametrize(("folder", "case"), golden_sources_of(*CASES))
def test_detected_architecture_is_the_official_one(folder: Path, case: str) -> None:
    config, _ = golden_model(folder, case)
    meta = load_meta(folder, case)
    official = meta["config"] | meta.get("attn", {})
    official["learn_sigma"] = official.pop("pred_sigma")
    if compression := official.pop("kv_compress_config", None):
        assert config.kv_compress_config is not None
        ours = dataclasses.asdict(config.kv_compress_config)
        assert ours | {"kv_compress_layer": list(ours["kv_compress_layer"])} == compression
    assert {name: getattr(config, name) for name in official} == official
    assert config.cross_heads == meta["config"]["num_heads"]


@pytest.mark.parametrize(("folder", "case"), golden_sources_of(*CASES))
def test_export_returns_the_official_file(folder: Path, case: str) -> None:
    config, params = golden_model(folder, case)
    official = golden_state(folder, case)
    exported = export_params(params, config, layout_of(list(official)))
    assert set(exported) == set(official)
    for key, value in official.items():
        assert exported[key].flags.c_contiguous
        if key == "pos_embed":  # recomputed; sines may differ in the last place between machines
            np.testing.assert_allclose(exported[key], value, rtol=0, atol=2e-7)
        else:
            np.testing.assert_array_equal(exported[key], value, err_msg=key)


HUB = [
    pytest.param(folder / name, id=f"{name}-{'full' if folder == golden_folders()[0] else 'copy'}")
    for name in ("hf_pixart", "hf_pixart_sharded", "hf_pixart_micro")
    for folder in golden_folders()
    if (folder / name).is_dir()
]


@pytest.mark.parametrize("source", HUB)
def test_diffusers_folders(source: Path) -> None:
    """One file or shards; both outputs of diffusers; the tensors are those of the official file."""
    state: dict[str, np.ndarray] = {}
    for file in sorted(source.glob("*.safetensors")):
        state |= load_file(file)
    hub = json.loads((source / "config.json").read_text())
    config = detect_config(state, hub=hub)
    assert isinstance(config, PixArtConfig)
    assert config.model_max_length is None
    params, report = import_params(state, config)
    assert not report.dropped
    arrays = load_arrays(source.parent, source.name.removesuffix("_sharded"))
    sizes = [arrays.get("resolution"), arrays.get("aspect_ratio")]
    for name, mask in (("out_mask", arrays["encoder_attention_mask"]), ("out_nomask", None)):
        cond = TextCondition(arrays["encoder_hidden_states"], mask, *sizes)
        out = forward(config)(params, nhwc(arrays["x"]), arrays["t"], cond)
        assert relative_error(out, nhwc(arrays[name])) < 1e-5, name
    exported = export_params(params, config, "diffusers")
    assert set(exported) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)
    official = "pixart_ms_micro" if config.micro_condition else "pixart_base"
    for param in (
        golden_sources_of(official) if (source.parent / f"{official}.npz").exists() else []
    ):
        _, theirs = golden_model(*param.values)
        flat = traverse_util.flatten_dict(theirs, sep="/")
        del flat["y_embedder/null_caption"]
        ours = traverse_util.flatten_dict(params, sep="/")
        assert set(ours) == set(flat)
        for path, leaf in ours.items():
            np.testing.assert_array_equal(leaf, flat[path], err_msg=path)


# --- what is read off shapes ---

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no null caption": {"model_max_length": None},
    "micro-conditions": {"micro_condition": True, "pe_interpolation": 2.0},
    "qk_norm": {"qk_norm": True, "learn_sigma": False, "patch_size": 1},
    "compressed": {"kv_compress_config": KVCompressConfig("conv", 3, (0, 2)), "mlp_ratio": 2.5},
    "linear": {"mixer": "linear", "cross_num_heads": 4, "pe_interpolation": 0.5},
    "linear, no biases": {"mixer": "linear", "qkv_bias": False, "cross_num_heads": 2},
    "no convolution": {"mixer": "linear", "kernel_size": None, "cross_num_heads": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_detection_recovers_the_config(variant: str) -> None:
    """From the tensors alone, but for heads that leave no trace in them."""
    config = tiny(**VARIANTS[variant])
    said: dict[str, Any] = {}
    if config.mixer == "softmax" or config.kernel_size is None:
        said["num_heads"] = config.num_heads
    if config.mixer == "linear":
        said["cross_num_heads"] = config.cross_num_heads
    found = detect_config(state_like(config), None, said)
    expected = config if config.mixer == "linear" else dataclasses.replace(config, kernel_size=5)
    assert found == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_then_import_is_the_identity(variant: str) -> None:
    config = tiny(**VARIANTS[variant])
    for layout in layouts_for(config):
        params, _ = import_params(state_like(config), config)
        exported = export_params(params, config, layout)
        again = config
        if layout.name == "diffusers":  # has no place for the null caption
            again = dataclasses.replace(config, model_max_length=None)
            params["y_embedder"].pop("null_caption", None)
        ours = traverse_util.flatten_dict(import_params(exported, again, layout)[0], sep="/")
        for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
            np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_published_models_need_no_flags() -> None:
    """Width and depth tell their heads; the rest is in the file."""
    for config in (
        PixArtConfig(),
        PixArtConfig(input_size=128, pe_interpolation=2.0),
        PixArtConfig(mixer="linear", num_heads=2),
    ):
        shapes = {
            key: np.broadcast_to(np.float32(0), slot.source_shape)
            for key, slot in slots(layouts_for(config)[0], config).items()
        }
        shapes["pos_embed"] = position_table(config)[None]
        assert detect_config(shapes) == config


def test_the_error_asks_for_exactly_what_is_missing() -> None:
    state = state_like(tiny())
    with pytest.raises(ValueError, match=r"--model PixArt --set num_heads=HEADS$") as error:
        detect_config(state)
    assert "hidden_size 24, depth 3, which is no named size" in str(error.value)
    del state["pos_embed"]
    with pytest.raises(ValueError, match="input_size .there is no pos_embed.; pe_interpolation"):
        detect_config(state, None, {"num_heads": 2})
    linear = state_like(tiny(mixer="linear", cross_num_heads=4))
    with pytest.raises(ValueError, match=r"--set cross_num_heads=HEADS$") as error:
        detect_config(linear)
    assert "softmax heads of the cross-attention" in str(error.value)
    wide = state_like(tiny(input_size=(8, 12)))
    with pytest.raises(ValueError, match=r"--set input_size=LATENT_SIDE$"):
        detect_config(wide, None, {"num_heads": 2})
    said = {"num_heads": 2, "input_size": (8, 12)}
    assert detect_config(wide, None, said).grid == (4, 6)


def test_contradictions() -> None:
    compressed = tiny(kv_compress_config=KVCompressConfig("conv", 2, (1,)))
    state, heads = state_like(compressed), {"num_heads": 2}
    for asked in (
        None,
        {"sampling": "ave", "scale_factor": 2, "kv_compress_layer": [0, 1]},
        {"sampling": "conv", "scale_factor": 4, "kv_compress_layer": [1]},
    ):
        with pytest.raises(ValueError, match="kv_compress_config: asked for"):
            detect_config(state, None, heads | {"kv_compress_config": asked})
    with pytest.raises(ValueError, match="say kv_compress_config.kv_compress_layer too"):
        asked = {"kv_compress_config": {"sampling": "uniform"}}
        detect_config(state_like(tiny()), None, heads | asked)
    without_filters = {"sampling": "ave", "scale_factor": 2, "kv_compress_layer": [2]}
    found = detect_config(state_like(tiny()), None, heads | {"kv_compress_config": without_filters})
    assert found.kv_compress_config == KVCompressConfig("ave", 2, (2,))
    with pytest.raises(ValueError, match="model_max_length: asked for 7, the checkpoint has 5"):
        detect_config(state, None, heads | {"model_max_length": 7})
    # Filters of a layer beyond the model, or a part of them, are not dropped in silence.
    for key in ("sr.weight", "sr.bias", "norm.weight", "norm.bias"):
        part = {k: v for k, v in state.items() if k != f"blocks.1.attn.{key}"}
        with pytest.raises(ValueError, match=rf"layer 1 has a part .* blocks.1.attn.{key} missing"):
            detect_config(part, None, heads)
    stray = {"blocks.7.attn.sr.weight": np.zeros((24, 1, 2, 2), np.float32)}
    with pytest.raises(ValueError, match="beyond the 3 layers .* blocks.7.attn.sr.weight"):
        detect_config(state | stray, None, heads)
