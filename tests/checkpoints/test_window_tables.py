"""CLEAR in the converter: the official layouts of softmax models, and weights of pooled tokens."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.pairing import layout_named
from lit_jax.models.family import architecture
from lit_jax.models.functional import abstract_params
from lit_jax.models.registry import NetworkConfig, model_config

SIZE: dict[str, Any] = {"hidden_size": 8, "depth": 2, "num_heads": 2, "input_size": 8}
LAYOUTS = {"CLEAR": "dit", "PixArt": "pixart"}


def clear(family: str, **fields: Any) -> NetworkConfig:
    """A tiny CLEAR on class labels or captions."""
    own = {"num_classes": 3} if family == "CLEAR" else {"mixer": "window", "caption_channels": 3}
    config: NetworkConfig = model_config(family, **SIZE | own | fields)
    return config


def drawn(config: NetworkConfig) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(config)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes)


def exported(config: NetworkConfig) -> dict[str, np.ndarray]:
    layout = layout_named(config, LAYOUTS[config.family])
    return export_params(drawn(config), config, layout)


@pytest.mark.parametrize("family", LAYOUTS)
def test_without_pooled_tokens_the_keys_are_those_of_softmax(family: str) -> None:
    config = clear(family, window_size=16)
    state = exported(config)
    softmax = detect_config(state, None, {"num_heads": 2})
    assert (softmax.mixer, softmax.family) == ("softmax", family.replace("CLEAR", "DiT"))
    assert not [key for key in state if "spatial" in key]
    told = {"num_heads": 2, "mixer": "window", "window_size": 16}
    assert detect_config(state, None, told) == config


@pytest.mark.parametrize("family", LAYOUTS)
def test_pooled_tokens_add_the_official_key(family: str) -> None:
    """Its shape tells the factor; nothing but the user tells the radius."""
    config = clear(family, window_size=16, down_factor=4)
    params, state = drawn(config), exported(config)
    weight = state["blocks.1.attn.spatial_weight"]
    assert weight.shape == (1, 1, 1, 4, 1, 4, 1)
    assert np.array_equal(weight.reshape(4, 4), params["blocks"]["attn"]["pool"]["kernel"][1])
    with pytest.raises(ValueError, match=r"spatial_weight' is that of a CLEAR.*window_size=RADIUS"):
        detect_config(state, None, {"num_heads": 2})
    assert detect_config(state, None, {"num_heads": 2, "window_size": 16}) == config
    back, _ = import_params(state, config)
    same = jax.tree.map(np.array_equal, back, params)
    assert all(jax.tree.leaves(same))

    told = {"num_heads": 2, "window_size": 16, "down_factor": 2}
    with pytest.raises(ValueError, match="down_factor: asked for 2, the checkpoint has 4"):
        detect_config(state, None, told)


@pytest.mark.parametrize("factor", [None, 2])
@pytest.mark.parametrize("family", LAYOUTS)
def test_an_exported_file_says_what_it_is(family: str, factor: int | None) -> None:
    config = clear(family, window_size=5, down_factor=factor)
    assert detect_config(exported(config), stored=architecture(config)) == config


def shapes(name: str, **fields: Any) -> dict[str, np.ndarray]:
    """A state dict of a named size that takes no memory."""
    config = model_config(name, **fields)
    layout = layout_named(config, LAYOUTS[config.family])
    from lit_jax.checkpoints.pairing import slots

    found = {key: slot.source_shape for key, slot in slots(layout, config).items()}
    found["pos_embed"] = (1, config.num_tokens, config.hidden_size)
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in found.items()}


def test_names_say_that_there_are_windows() -> None:
    """The radius is that of the name, or the one beside it."""
    state = shapes("CLEAR-S/8")
    assert detect_config(state, "CLEAR-S/8") == model_config("CLEAR-S/8")
    told = detect_config(state, "CLEAR-S/8", {"window_size": 16})
    assert told == model_config("CLEAR-S/8", window_size=16)
    assert detect_config(state, "CLEAR").mixer == "window"
    assert detect_config(state, "DiT-S/8") == model_config("DiT-S/8")
    as_dit = detect_config(state, "DiT-S/8", {"mixer": "window"})
    assert as_dit == model_config("DiT-S/8", mixer="window")


def test_a_name_with_windows_on_captions() -> None:
    state = shapes("CLEAR-PixArt-Sigma-XL/2")
    found = detect_config(state, "CLEAR-PixArt-Sigma-XL/2", {"pe_interpolation": 1.0})
    assert (found.mixer, found.num_heads, found.cross_heads) == ("window", 16, 16)


def test_windows_are_no_layout_of_diffusers() -> None:
    """Its class would attend to everything."""
    with pytest.raises(ValueError, match="'diffusers' cannot hold a CLEAR .*use layout 'dit'"):
        layout_named(clear("CLEAR"), "diffusers")
