"""T5 checkpoints: keys, the architecture read from shapes and config.json, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of
from lit_jax.models.family import architecture
from lit_jax.models.functional import apply_fn
from lit_jax.models.t5.config import T5Config
from support.golden_cases import COPIES, golden_sources, load_arrays, load_meta, relative_error

FOLDERS = ("t5", "t5_sharded", "t5_bin", "t5_bin_sharded")
SOURCES = [
    pytest.param(name, *source.values, id=f"{name}-{source.id}")
    for name in FOLDERS
    for source in golden_sources(f"{name}/config.json")
]

State = dict[str, np.ndarray]


def load_weights(folder: Path) -> State:
    """All tensors of a Hugging Face folder: one file or shards, safetensors or torch."""
    state: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        torch = pytest.importorskip("torch")
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state |= {key: tensor.numpy() for key, tensor in stored.items()}
    return state


def golden_state() -> State:
    return load_weights(COPIES / "t5")


def hub_config(folder: Path = COPIES / "t5", **changes: Any) -> dict[str, Any]:
    """The golden config.json with changes; a field changed to None is taken out."""
    fields = json.loads((folder / "config.json").read_text()) | changes
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_every_folder_gives_the_official_output(name: str, source: Path) -> None:
    state = load_weights(source / name)
    config = detect_config(state, hub=hub_config(source / name))
    arrays = load_arrays(source, "t5")
    ids, mask = arrays["short/input_ids"], arrays["short/attention_mask"]
    out = apply_fn(config)(import_params(state, config)[0], ids, mask)
    assert relative_error(out, arrays["short/out_mask"]) < 1e-5


def test_detected_architecture() -> None:
    """Shapes alone are enough; config.json adds what leaves no trace in them."""
    official = load_meta(COPIES, "t5")["config"]
    config = detect_config(golden_state())
    assert config == T5Config(**official)
    hub = hub_config(relative_attention_max_distance=64, layer_norm_epsilon=1e-5)
    config = detect_config(golden_state(), hub=hub)
    assert config == T5Config(
        **official, relative_attention_max_distance=64, layer_norm_epsilon=1e-5
    )
    # config.json of older releases has no maximal distance.
    older = hub_config(relative_attention_max_distance=None)
    assert detect_config(golden_state(), hub=older) == T5Config(**official)


def test_heads_need_not_fill_the_model_width() -> None:
    state = golden_state()
    for key in list(state):
        if ".SelfAttention." in key and key.split(".")[-2] in "qkv":
            state[key] = state[key][:20]
        elif key.endswith("SelfAttention.o.weight"):
            state[key] = state[key][:, :20]
    config = detect_config(state)
    assert isinstance(config, T5Config)
    assert (config.d_model, config.num_heads, config.d_kv) == (32, 4, 5)
    assert import_params(state, config)[0]["blocks"]["attn"]["q"]["kernel"].shape == (2, 32, 20)


def test_named_size_is_checked() -> None:
    with pytest.raises(ValueError, match="not --model T5-v1.1-XXL:\n.*d_model: asked for 4096"):
        detect_config(golden_state(), "T5-v1.1-XXL")


def test_config_json_that_belongs_to_other_weights() -> None:
    with pytest.raises(ValueError, match="num_heads: config.json says 8, the checkpoint has 4"):
        detect_config(golden_state(), hub=hub_config(num_heads=8))


def test_export_returns_the_official_file() -> None:
    official = golden_state()
    config = detect_config(official)
    exported = export_params(import_params(official, config)[0], config, "transformers")
    assert exported.keys() == official.keys()
    for key, value in official.items():
        assert exported[key].flags.c_contiguous
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


def test_either_name_of_the_token_table() -> None:
    state = golden_state()
    table = state.pop("shared.weight")
    with pytest.raises(ValueError, match="'shared.weight' is missing"):
        detect_config(state)
    state["encoder.embed_tokens.weight"] = table
    config = detect_config(state)
    params = import_params(state, config)[0]
    np.testing.assert_array_equal(params["shared"]["embedding"], table)
    state["shared.weight"] = table + 1
    with pytest.raises(ValueError, match="'encoder.embed_tokens.weight' is not the copy"):
        import_params(state, config)


def test_decoder_of_a_whole_t5_is_dropped() -> None:
    state = golden_state()
    config, expected = detect_config(state), import_params(state, detect_config(state))[0]
    for key in list(state):
        if key.startswith("encoder."):
            state[key.replace("encoder.", "decoder.", 1)] = state[key] + 1
    attention = "decoder.block.0.layer.1.EncDecAttention"
    state |= {f"{attention}.{name}.weight": np.ones((32, 32), "f4") for name in "qkvo"}
    state[f"{attention}.relative_attention_bias.weight"] = np.ones((32, 4), "f4")
    state |= {name: np.ones((96, 32), "f4") for name in ("decoder.embed_tokens.weight",)}
    state["lm_head.weight"] = np.ones((96, 32), "f4")
    assert detect_config(state) == config
    params, work = import_params(state, config)
    assert work.layout.name == "transformers"
    assert all("decoder" in reason for reason in work.dropped.values())
    assert set(work.dropped) == {k for k in state if k.startswith(("decoder.", "lm_head."))}
    for name in ("q", "k", "v", "out"):
        np.testing.assert_array_equal(
            params["blocks"]["attn"][name]["kernel"], expected["blocks"]["attn"][name]["kernel"]
        )
    state["encoder.block.0.layer.0.SelfAttention.scale"] = np.ones(1, "f4")
    with pytest.raises(ValueError, match="unused key 'encoder.block.0.layer.0.SelfAttention.scale"):
        import_params(state, config)


def test_every_missing_key_is_named() -> None:
    config = detect_config(golden_state())
    for key in golden_state():
        state = golden_state()
        del state[key]
        with pytest.raises(ValueError, match=f"'{key}'"):
            import_params(state, config, layout_of(list(golden_state())))


# --- relatives that are not supported ---


def test_t5_of_version_1_0_is_refused() -> None:
    state = {
        key.replace("wi_0", "wi"): value
        for key, value in golden_state().items()
        if "wi_1" not in key
    }
    with pytest.raises(ValueError, match=r"is a T5 v1\.0: .*wi\.weight.*ReLU.*T5 v1\.1"):
        detect_config(state)


def test_umt5_is_refused() -> None:
    state = golden_state()
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    state[bias.format(1)] = state[bias.format(0)]
    with pytest.raises(ValueError, match=r"is a UMT5: 'encoder\.block\.1\..*share the bias"):
        detect_config(state)


def test_nonsense_shapes() -> None:
    state = golden_state()
    key = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    state[key] = state[key][:, :3]
    with pytest.raises(ValueError, match="32 rows, which 3 heads, .* do not divide"):
        detect_config(state)
    del state[key]
    with pytest.raises(ValueError, match=f"{key}' is missing"):
        detect_config(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, "model_type is 'umt5', whose blocks have a position bias each"),
        ({"model_type": "clip_text_model"}, "model_type is 'clip_text_model'; .*'t5' or 'mt5'"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'; supported is 'gated-gelu'"),
        ({"feed_forward_proj": None}, r"feed_forward_proj is 'relu' \(it is not given\)"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'; a T5 encoder needs 'gelu_new'"),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"num_heads": "4"}, r"config.json.num_heads is '4' \(str\); it must be int"),
        ({"layer_norm_epsilon": "1e-6"}, "config.json.layer_norm_epsilon is '1e-6' .*be float"),
        ({"feed_forward_proj": ["gated-gelu"]}, "feed_forward_proj is"),
        ({"model_type": ["t5"]}, r"model_type is \['t5'\]"),
    ],
)
def test_config_json_of_other_networks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_config(golden_state(), hub=hub_config(**changes))


def test_mt5_is_the_same_encoder() -> None:
    hub = hub_config(model_type="mt5", dense_act_fn=None, is_gated_act=None)
    fields = architecture(detect_config(golden_state(), hub=hub))
    assert fields == architecture(detect_config(golden_state()))
