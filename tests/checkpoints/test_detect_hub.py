"""The config.json beside a checkpoint, against its tensors, its metadata and the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layouts_for
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.dit.detect import from_hub
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import family_of, model_config

TINY = {"hidden_size": 8, "depth": 2, "num_heads": 2, "input_size": 8, "num_classes": 3}
DIT = model_config("DiT", **TINY)
PIXART = model_config(
    "PixArt",
    hidden_size=24,
    depth=2,
    num_heads=2,
    input_size=8,
    caption_channels=10,
    model_max_length=None,
    pe_interpolation=1.5,
)


def diffusers_shapes(config: Any) -> dict[str, np.ndarray]:
    """A state dict of diffusers with the right shapes that takes no memory."""
    (layout,) = (layout for layout in layouts_for(config) if layout.name == "diffusers")
    return {
        key: np.broadcast_to(np.float32(0), slot.source_shape)
        for key, slot in slots(layout, config).items()
    }


def hub_of(config: Any, **changes: Any) -> dict[str, Any]:
    """Our config.json for diffusers, with changes; an entry changed to ... is taken out."""
    entries = family_of(config).hub(config)[0] | changes
    return {entry: value for entry, value in entries.items() if value is not ...}


@pytest.mark.parametrize("config", [DIT, PIXART], ids=["DiT", "PixArt"])
def test_our_own_files_agree(config: Any) -> None:
    assert detect_config(diffusers_shapes(config), hub=hub_of(config)) == config


def test_fields_of_a_dit() -> None:
    same = {field: getattr(DIT, field) for field in (*TINY, "in_channels", "patch_size")}
    assert from_hub(hub_of(DIT)) == same | {"learn_sigma": True}
    early = hub_of(DIT, _class_name="Transformer2DModel", norm_eps=1e-5, out_channels=...)
    assert from_hub(early) == same | {"learn_sigma": False}


def test_a_truncated_checkpoint_is_refused() -> None:
    """One block fewer is a consistent smaller model; only config.json knows better."""
    state = diffusers_shapes(DIT)
    short = {key: value for key, value in state.items() if "transformer_blocks.1." not in key}
    assert len(short) < len(state)
    with pytest.raises(ValueError, match="depth: config.json says 2, the checkpoint has 1"):
        detect_config(short, hub=hub_of(DIT))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 4}, "depth: config.json says 4, the checkpoint has 2"),
        ({"attention_head_dim": 8}, "hidden_size: config.json says 16, the checkpoint has 8"),
        (
            {"in_channels": 3, "out_channels": 6},
            "in_channels: config.json says 3, the checkpoint has 4",
        ),
        ({"out_channels": 4}, "learn_sigma: config.json says False, the checkpoint has True"),
        ({"out_channels": ...}, "learn_sigma: config.json says False, the checkpoint has True"),
        ({"patch_size": 4}, "patch_size: config.json says 4, the checkpoint has 2"),
        ({"num_embeds_ada_norm": 7}, "num_classes: config.json says 7, the checkpoint has 3"),
    ],
)
def test_a_config_that_contradicts_the_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        detect_config(diffusers_shapes(DIT), hub=hub_of(DIT, **changes))
    assert "asked for" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'; DiT needs 'DiTTrans"),
        ({"_class_name": None}, "_class_name is None"),
        ({"norm_eps": 1e-4}, "norm_eps is 0.0001; DiT needs 1e-06 or 1e-05"),
        ({"norm_type": "ada_norm_single"}, "norm_type is 'ada_norm_single'"),
        ({"out_channels": 5}, "out_channels is 5; DiT needs in_channels 4, or twice that"),
        (
            {"num_attention_heads": ..., "sample_size": None, "num_embeds_ada_norm": ...},
            "config.json: num_attention_heads, sample_size, num_embeds_ada_norm missing; DiT needs",
        ),
        ({"num_layers": "2"}, r"config.json.num_layers is '2' \(str\); it must be int"),
        ({"sample_size": [8, 8]}, r"sample_size is \[8, 8\] \(list\); it must be int"),
        ({"attention_head_dim": 4.5}, r"attention_head_dim is 4.5 \(float\); it must be int"),
        ({"num_attention_heads": True}, r"num_attention_heads is True \(bool\)"),
    ],
)
def test_configs_that_no_dit_can_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_config(diffusers_shapes(DIT), hub=hub_of(DIT, **changes))


@pytest.mark.parametrize(
    "hub",
    [hub_of(PIXART), {"model_type": "t5", "d_model": 8}, {"_class_name": "UNet2DModel"}],
    ids=["PixArt", "T5", "UNet"],
)
def test_config_of_another_network(hub: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="config.json: .*DiT needs"):
        detect_config(diffusers_shapes(DIT), hub=hub)


def test_config_and_metadata_that_contradict_each_other() -> None:
    """Where shapes tell neither of them."""
    hub, state = hub_of(DIT), diffusers_shapes(DIT)
    stored: dict[str, Any] = {"num_heads": 2, "input_size": [8, 8]}
    assert detect_config(state, None, {}, stored, hub).image_size == (8, 8)  # type: ignore[union-attr]
    stored = {"num_heads": 4, "input_size": 16}
    with pytest.raises(ValueError, match="of different models") as error:
        detect_config(state, None, {}, stored, hub)
    assert "num_heads: config.json says 2, the metadata of the weights 4" in str(error.value)
    assert "input_size: config.json says 8, the metadata of the weights 16" in str(error.value)


def test_the_user_does_not_overrule_config_json() -> None:
    hub, state = hub_of(DIT), diffusers_shapes(DIT)
    assert detect_config(state, None, {"num_heads": 2, "input_size": (8, 8)}, hub=hub) is not None
    message = (
        "num_heads: asked for 4, config.json beside the checkpoint says 2; edit that file if it is"
        " wrong"
    )
    with pytest.raises(ValueError, match=message):
        detect_config(state, None, {"num_heads": 4}, hub=hub)
    # What the shapes say comes first, and the other contradictions are listed with it.
    with pytest.raises(ValueError, match="depth: asked for 5, the checkpoint has 2") as error:
        detect_config(state, None, {"depth": 5, "num_heads": 4}, hub=hub)
    assert message in str(error.value)
    wrong = hub_of(DIT, num_layers=4)
    with pytest.raises(ValueError, match="depth: asked for 2, config.json .* says 4; edit"):
        detect_config(state, None, {"depth": 2}, hub=wrong)


def test_what_config_json_leaves_out_may_be_told() -> None:
    """The position scale of an early PixArt file is a guess from the size."""
    state, asked = diffusers_shapes(PIXART), {"pe_interpolation": 1.5}
    silent = hub_of(PIXART, interpolation_scale=None)
    config = detect_config(state, hub=silent)
    assert isinstance(config, PixArtConfig) and config.pe_interpolation == 1.0
    assert detect_config(state, None, asked, hub=silent) == PIXART
    assert detect_config(state, None, {}, asked, silent) == PIXART
    with pytest.raises(ValueError, match="pe_interpolation: asked for 2.0, config.json .* 1.5"):
        detect_config(state, None, {"pe_interpolation": 2}, hub=hub_of(PIXART))


def test_no_epsilon_is_the_default() -> None:
    for entries in (hub_of(DIT, norm_eps=1e-5), hub_of(DIT, norm_eps=...)):
        config = detect_config(diffusers_shapes(DIT), hub=entries)
        assert isinstance(config, DiTConfig) and config == DIT
