"""Key tables of PixArt and of the text-to-image LiT, in both directions, and detection."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
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
from lit_jax.models.pixart.detect import from_hub
from lit_jax.models.pixart.model import position_table
from lit_jax.models.position_tables import scaled_position_table
from lit_jax.models.registry import model_config
from lit_jax.models.transformer.positions import interpolation_of
from support.golden_cases import golden_folders, load_arrays, load_meta, nhwc, relative_error
from support.pixart_cases import CASES, forward, golden_model, golden_sources_of, golden_state, tiny

State = dict[str, np.ndarray]


def state_like(config: PixArtConfig, layout: int = 0, seed: int = 0) -> State:
    """A random checkpoint of `config` in one of its layouts, with the table an official one has."""
    rng = np.random.default_rng(seed)
    chosen = layouts_for(config)[layout]
    state = {
        key: rng.standard_normal(slot.source_shape).astype(np.float32)
        for key, slot in slots(chosen, config).items()
    }
    if chosen.reason_to_drop("pos_embed"):
        state["pos_embed"] = position_table(config)[None]
    return state


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
    state: State = {}
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


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
def test_position_scale_of_a_table(scale: float, dtype: Any) -> None:
    for width, side in ((16, 2), (48, 8), (1152, 4)):
        table = scaled_position_table((side, side), width, (side, side), scale).astype(dtype)
        assert interpolation_of(table) == scale


def test_position_scales_off_the_steps() -> None:
    for scale in (0.3, 1 / 3, 0.1, 4.003):
        table = scaled_position_table((4, 4), 48, (4, 4), scale)
        assert interpolation_of(table) == pytest.approx(scale, rel=1e-5)
    assert interpolation_of(np.zeros((4, 48), np.float32)) is None


def test_widths_that_hold_no_code() -> None:
    for width in (0, 1, 3):
        assert interpolation_of(np.ones((4, width), np.float32)) is None
    assert interpolation_of(np.full((4, 48), np.nan, np.float32)) is None
    state = state_like(tiny())
    tokens = state["pos_embed"].shape[1]
    for width in (2, 48):
        state["pos_embed"] = np.ones((1, tokens, width), np.float32)
        with pytest.raises(ValueError, match=rf"pe_interpolation .pos_embed has .* {width}\)"):
            detect_config(state, None, {"num_heads": 2})


@pytest.mark.parametrize("scale", [1.0, 2.0, 1 / 3, 0.3, 4.003])
@pytest.mark.parametrize("size", [8, 64, (8, 12)])
def test_scale_of_a_whole_table(scale: float, size: Any) -> None:
    config = tiny(input_size=size, pe_interpolation=scale)
    told = {"num_heads": 2} | ({} if size == 8 else {"input_size": size})
    found = detect_config(state_like(config), None, told)
    assert found.pe_interpolation == pytest.approx(scale, rel=1e-5)
    assert found.input_size == size


@pytest.mark.parametrize("size", [8, (8, 12)])
def test_a_table_that_is_none_tells_no_scale(size: Any) -> None:
    """Its second token would: that of noise tells some scale, that of a shuffled table its own."""
    state = state_like(tiny(input_size=size))
    told = {"num_heads": 2, "input_size": size}
    good = state["pos_embed"]
    shuffled = np.concatenate([good[:, :2], good[:, :1:-1]], axis=1)
    late = good.copy()
    late[0, -1, -1] += 0.01
    noise = [np.random.default_rng(seed).standard_normal(good.shape) for seed in range(20)]
    ones = np.ones_like(good)
    for bad in (shuffled, late, ones, *(table.astype(np.float32) for table in noise)):
        state["pos_embed"] = bad
        with pytest.raises(ValueError, match="no position table of any scale") as error:
            detect_config(state, None, told)
        assert str(error.value).endswith("--set pe_interpolation=SIDE_IN_PIXELS/512")
        assert detect_config(state, None, told | {"pe_interpolation": 2}).pe_interpolation == 2


# --- diffusers ---


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
