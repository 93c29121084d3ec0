"""The architecture is read from shapes; what they do not tell is asked for by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.attention.linear import KERNEL_FUNCTIONS
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.registry import model_config, sizes
from lit_jax.models.transformer.shape import KERNEL_FNS


def shapes_of(config: DiTConfig) -> dict[str, np.ndarray]:
    """A state dict with the right shapes that takes no memory."""
    expected = slots(layouts_for(config)[0], config)
    shapes = {key: slot.source_shape for key, slot in expected.items()}
    shapes["pos_embed"] = (1, config.num_tokens, config.hidden_size)
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


@st.composite
def configs(draw: Any) -> DiTConfig:
    family = draw(st.sampled_from(["DiT", "LiT"]))
    patch = draw(st.sampled_from([1, 2, 4]))
    heads = draw(st.sampled_from([1, 2, 3]))
    hidden = heads * draw(st.sampled_from([4, 8, 20]))
    linear = {}
    if family == "LiT":
        linear = {
            "mixer": draw(st.sampled_from(["linear", "focused"])),
            "kernel_size": draw(st.sampled_from([None, 3, 5])),
        }
    return model_config(
        family,
        patch_size=patch,
        hidden_size=hidden,
        num_heads=heads,
        depth=draw(st.integers(1, 12)),
        input_size=patch * draw(st.integers(1, 5)),
        in_channels=draw(st.integers(1, 4)),
        mlp_ratio=draw(st.integers(1, 5 * hidden)) / hidden,
        num_classes=draw(st.sampled_from([0, 2, 7])),
        class_dropout_prob=draw(st.sampled_from([0.0, 0.1])),
        learn_sigma=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        **linear,
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(configs())
def test_detection_recovers_the_config(config: DiTConfig) -> None:
    said: dict[str, Any] = {"class_dropout_prob": config.class_dropout_prob}
    if config.family == "DiT" or config.kernel_size is None:
        said["num_heads"] = config.num_heads
    if config.num_classes == 0:
        said["num_classes"] = 0
    found = detect_config(shapes_of(config), None, said)
    assert found.mlp_width == config.mlp_width
    assert dataclasses.replace(found, mlp_ratio=1) == dataclasses.replace(config, mlp_ratio=1)


@pytest.mark.parametrize("name", ["DiT-S/2", "DiT-XL/8", "LiT-S/2", "LiT-B/4"])
def test_named_sizes_need_no_flags(name: str) -> None:
    config = model_config(name)
    assert detect_config(shapes_of(config)) == config
    assert detect_config(shapes_of(config), name) == config
    assert name in sizes()


def test_mlp_width_survives_the_division() -> None:
    """A ratio that truncates to one less than the stored width would not load."""
    hidden = next(h for h in range(4, 400, 4) if any(int(h * (w / h)) != w for w in range(h)))
    width = next(w for w in range(hidden) if int(hidden * (w / hidden)) != w)
    state = shapes_of(model_config("DiT", hidden_size=hidden, depth=1, num_heads=1))
    state["blocks.0.mlp.fc1.weight"] = np.broadcast_to(np.float32(0), (width, hidden))
    assert detect_config(state, None, {"num_heads": 1}).mlp_width == width


TINY = {"hidden_size": 8, "depth": 2, "num_heads": 2, "input_size": 8, "num_classes": 3}


def test_a_label_table_is_read_as_the_user_says() -> None:
    state = shapes_of(model_config("DiT", **TINY))  # four rows
    heads = {"num_heads": 2}
    for said, classes, null in [
        ({}, 3, 3),
        ({"class_dropout_prob": 0.0}, 4, None),
        ({"class_dropout_prob": 0.2}, 3, 3),
        ({"num_classes": 4}, 4, None),
        ({"num_classes": 3}, 3, 3),
    ]:
        config = detect_config(state, None, heads | said)
        assert (config.num_classes, config.null_label) == (classes, null), said
    with pytest.raises(ValueError, match="num_classes: asked for 9, the checkpoint has 3"):
        detect_config(state, None, heads | {"num_classes": 9})
    with pytest.raises(ValueError, match="num_classes: asked for 3, the checkpoint has 4"):
        detect_config(state, None, heads | {"num_classes": 3, "class_dropout_prob": 0.0})


@pytest.mark.parametrize("family", ["DiT", "LiT"])
def test_a_lost_label_table_is_no_unconditional_model(family: str) -> None:
    state = shapes_of(model_config(family, **TINY | {"num_classes": 0}))
    key = r"'y_embedder.embedding_table.weight' is missing.*--set num_classes=0"
    for told in ({}, {"num_classes": 3}, {"class_dropout_prob": 0.0}):
        with pytest.raises(ValueError, match=key):
            detect_config(state, None, {"num_heads": 2} | told)
    told = {"num_heads": 2, "num_classes": 0}
    assert detect_config(state, None, told).num_classes == 0
    # What our own exports carry along says it too.
    assert detect_config(state, None, {}, told).num_classes == 0
    labelled = shapes_of(model_config(family, **TINY))
    with pytest.raises(ValueError, match="num_classes: asked for 0, the checkpoint has 3"):
        detect_config(labelled, None, told)


def test_the_error_asks_for_exactly_what_is_missing() -> None:
    state = shapes_of(model_config("DiT", **TINY))
    with pytest.raises(ValueError, match=r"--model DiT --set num_heads=HEADS$") as error:
        detect_config(state)
    assert "hidden_size 8, depth 2" in str(error.value)
    with pytest.raises(ValueError, match="num_heads=HEADS"):
        detect_config(state, "DiT")
    lit = shapes_of(model_config("LiT", **TINY | {"kernel_size": None}))
    with pytest.raises(ValueError, match=r"--model LiT --set num_heads=HEADS$"):
        detect_config(lit)
    wide = shapes_of(model_config("DiT", **TINY | {"input_size": (4, 8)}))
    with pytest.raises(ValueError, match=r"--set num_heads=HEADS input_size=HEIGHTxWIDTH$"):
        detect_config(wide)
    config = detect_config(wide, "DiT", {"num_heads": 2, "input_size": (4, 8)})
    assert config.grid == (2, 4)
    del state["pos_embed"]
    with pytest.raises(ValueError, match="there is no pos_embed"):
        detect_config(state, "DiT", {"num_heads": 2})


def test_all_contradictions_with_a_name_are_listed() -> None:
    state = shapes_of(model_config("DiT", **TINY | {"mlp_ratio": 2.0, "patch_size": 4}))
    with pytest.raises(ValueError, match="not --model LiT-S/2") as error:
        detect_config(state, "LiT-S/2")
    for expected in (
        "family: asked for 'LiT', the checkpoint has 'DiT'",
        "hidden_size: asked for 384, the checkpoint has 8",
        "depth: asked for 12, the checkpoint has 2",
        "patch_size: asked for 2, the checkpoint has 4",
        "mlp_ratio: asked for 4.0, the checkpoint has 2.0",
    ):
        assert expected in str(error.value)
    with pytest.raises(ValueError, match="num_heads: asked for 4, the checkpoint has 2"):
        detect_config(shapes_of(model_config("LiT", **TINY)), None, {"num_heads": 4})


def test_unknown_names() -> None:
    state = shapes_of(model_config("DiT", **TINY))
    with pytest.raises(ValueError, match="did you mean 'num_heads'"):
        detect_config(state, None, {"num_head": 2})
    with pytest.raises(ValueError, match="did you mean 'DiT-S/2'"):
        detect_config(state, "DiT-S2")
    with pytest.raises(ValueError, match="unknown architecture field 'dtype'"):
        detect_config(state, None, {"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="num_heads"):
        detect_config(state, None, {"num_heads": "two"})


def test_broken_checkpoints() -> None:
    state = shapes_of(model_config("DiT", **TINY))
    broken = {k: v for k, v in state.items() if k != "x_embedder.proj.weight"}
    broken["final_layer.linear.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match="'x_embedder.proj.weight' is missing") as error:
        detect_config(broken)
    assert "'final_layer.linear.weight' has shape (3,); 2 axes" in str(error.value)
    odd = state | {"final_layer.linear.weight": np.zeros((33, 8))}
    with pytest.raises(ValueError, match="has 33 rows; .* need 16, or twice that"):
        detect_config(odd, None, {"num_heads": 2})


def test_empty_tensors() -> None:
    for family, key in (
        ("DiT", "x_embedder.proj.weight"),
        ("DiT", "blocks.0.mlp.fc1.weight"),
        ("DiT", "y_embedder.embedding_table.weight"),
        ("LiT", "blocks.0.attn.dwc.weight"),
    ):
        state = shapes_of(model_config(family, **TINY))
        state[key] = np.zeros((0, *state[key].shape[1:]))
        with pytest.raises(ValueError, match=rf"'{key}' has shape \(0, .*; no axis may be empty"):
            detect_config(state, None, {"num_heads": 2})


def test_a_stray_block_does_not_count() -> None:
    """The depth ends at the first gap; what lies behind it is listed as unused, one line a key."""
    state = shapes_of(model_config("LiT", **TINY))
    stray = "blocks.99999999999.attn.qkv.weight"
    config = detect_config(state | {stray: np.zeros((24, 8), np.float32)})
    assert config.depth == 2
    with pytest.raises(ValueError, match=r"1 problem\(s\):\n  unused key 'blocks.99999999999"):
        import_params(state | {stray: np.zeros((24, 8), np.float32)}, config)


@pytest.mark.parametrize(
    ("field", "value", "needed"),
    [
        ("mlp_ratio", "abc", "float"),
        ("num_classes", 2.5, "int"),
        ("kernel_size", "x", "int | None"),
    ],
)
def test_fields_of_another_type(field: str, value: object, needed: str) -> None:
    state = shapes_of(model_config("LiT", **TINY))
    with pytest.raises(ValueError) as error:
        detect_config(state, None, {field: value})
    kind = type(value).__name__
    assert str(error.value) == f"model.{field} is {value!r} ({kind}); it must be {needed}"


@pytest.mark.parametrize("ratio", [float("inf"), float("nan"), -1])
def test_impossible_mlp_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"mlp_ratio: asked for {ratio:.1f}, the checkpoint has"):
        detect_config(shapes_of(model_config("LiT", **TINY)), None, {"mlp_ratio": ratio})


def test_a_stored_architecture_answers_everything() -> None:
    config = model_config("LiT", **TINY | {"kernel_size": None, "kernel_fn": "gelu"})
    stored = {k: v for k, v in dataclasses.asdict(config).items() if k in _architecture_fields()}
    assert detect_config(shapes_of(config), None, {}, stored) == config


def test_a_stored_architecture_of_other_weights() -> None:
    state = shapes_of(model_config("DiT", **TINY))
    with pytest.raises(ValueError, match="depth: its metadata say 5, the checkpoint has 2"):
        detect_config(state, None, {}, {"depth": 5, "num_heads": 2})
    # The user may overrule metadata where shapes tell nothing.
    assert detect_config(state, None, {"num_heads": 4}, {"num_heads": 2}).num_heads == 4


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"num_heads": "2"}, r"model.num_heads is '2' \(str\); it must be int"),
        ({"input_size": [[8], [8]]}, "model.input_size is"),
        ({"heads": 2}, "unknown architecture field 'heads'"),
        ({"family": ["DiT"]}, r"model.family is \['DiT'\] \(list\); it must be str"),
        ({"input_size": [8, 8, 8], "num_heads": 2}, r"input_size is \(8, 8, 8\)"),
    ],
)
def test_odd_metadata(stored: dict[str, Any], message: str) -> None:
    state = shapes_of(model_config("DiT", **TINY))
    with pytest.raises(ValueError, match=message):
        detect_config(state, "DiT", {}, stored)


@pytest.mark.parametrize("family", ["LiT", "PixArt"])
def test_feature_maps_are_those_of_linear_attention(family: str) -> None:
    assert set(KERNEL_FNS) == set(KERNEL_FUNCTIONS)
    fields = {"mixer": "linear", "hidden_size": 8, "num_heads": 2, "input_size": 8}
    for name in KERNEL_FNS:
        assert model_config(family, kernel_fn=name, **fields).kernel_fn == name
    with pytest.raises(ValueError, match="unknown kernel_fn 'rleu'; did you mean 'relu'"):
        model_config(family, kernel_fn="rleu", **fields)


def _architecture_fields() -> set[str]:
    from lit_jax.models.family import architecture

    return set(architecture(DiTConfig()))
