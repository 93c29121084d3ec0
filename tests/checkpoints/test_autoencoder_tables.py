"""Autoencoder checkpoints: key tables in both directions, what a file tells, what is refused."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of, layouts_for
from lit_jax.checkpoints.pairing import slots
from lit_jax.models.autoencoder.config import SIZES, AutoencoderConfig
from lit_jax.models.functional import with_params
from lit_jax.models.registry import model_config
from support.autoencoder_cases import (
    OLD_NAMES,
    decode,
    golden_model,
    normal,
    official,
    old_names,
    params_of,
)
from support.golden_cases import golden_path
from support.live_parity import live_seed, randomise_, state_of

LAYOUTS = ("diffusers", "diffusers-old")


def assert_equal(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(ours) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


# --- key tables ---


@pytest.mark.parametrize("case", ["vae_sd", "vae_sdxl"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_export_then_import_is_the_identity(case: str, name: str) -> None:
    model = golden_model(case)
    params = params_of(model)
    state = export_params(params, model.config, name)
    assert layout_of(list(state)).name == name
    again, report = import_params(state, model.config)
    assert report.dropped == {}
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("case", ["vae_sd", "vae_sdxl"])
def test_import_then_export_is_the_official_file(case: str) -> None:
    state, _ = official(case)
    model = golden_model(case)
    assert_equal(export_params(params_of(model), model.config, "diffusers"), state)


def test_old_names_give_the_same_network() -> None:
    """Bit for bit, in the parameters and in an image."""
    state, hub = official("vae_sd")
    old = old_names(state)
    assert sum(key not in state for key in old) == 2 * len(OLD_NAMES) * 2
    config = detect_config(old, hub=hub)
    params, _ = import_params(old, config)
    model = golden_model("vae_sd")
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, params_of(model))
    z = normal(0, 1, 5, 7, 4)
    np.testing.assert_array_equal(decode(with_params(config, params), z), decode(model, z))


def test_official_file_with_old_names() -> None:
    torch = pytest.importorskip("torch")
    try:
        path = golden_path("vae_sd_oldnames/diffusion_pytorch_model.bin")
    except FileNotFoundError:
        pytest.skip("only in the full golden set; the test above renames the copy")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = {key: tensor.numpy() for key, tensor in stored.items()}
    assert_equal(state, old_names(official("vae_sd", path.parents[1])[0]))
    params, _ = import_params(state, golden_model("vae_sd").config)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(golden_model("vae_sd")))


def test_keys_and_shapes_of_the_released_networks() -> None:
    """As diffusers builds them, without memory."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        reference = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    expected = {key: tuple(value.shape) for key, value in reference.state_dict().items()}
    assert len(expected) == 248
    for name in SIZES:
        config = model_config(name)
        new, old = layouts_for(config)
        for layout, keys in ((new, expected), (old, old_names(expected))):
            found = {key: slot.source_shape for key, slot in slots(layout, config).items()}
            assert found == keys, (name, layout.name)


def test_exported_files_load_into_diffusers() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    seed = live_seed()
    levels = 1 + seed % 3
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * levels}
    widths = {"block_out_channels": (4, 8, 4)[:levels], "norm_num_groups": 2}
    reference = diffusers.AutoencoderKL(**blocks, **widths, layers_per_block=1 + seed % 2)
    randomise_(reference, seed)
    state = state_of(reference)
    config = detect_config(state, hub=dict(reference.config))
    exported = export_params(import_params(state, config)[0], config, "diffusers")
    assert_equal(exported, state)
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in exported.items()}, strict=True)


# --- what a file tells ---


def shapes_only(config: AutoencoderConfig) -> dict[str, Any]:
    """A state dict of zeros that take no memory."""
    layout = layouts_for(config)[0]
    return {
        key: np.broadcast_to(np.float32(0), slot.source_shape)
        for key, slot in slots(layout, config).items()
    }


@pytest.mark.parametrize("name", SIZES)
def test_released_network_by_name(name: str) -> None:
    """Shapes and the name tell everything; there is no config.json."""
    config = model_config(name)
    assert detect_config(shapes_only(config), name) == config
    assert config.scaling_factor == {"SD-VAE": 0.18215, "SDXL-VAE": 0.13025}[name]


def test_shapes_tell_the_architecture() -> None:
    config = AutoencoderConfig(
        scaling_factor=0.5,
        in_channels=1,
        out_channels=2,
        latent_channels=3,
        block_out_channels=(6, 12, 18),
        layers_per_block=3,
        norm_num_groups=6,
    )
    told = {"scaling_factor": 0.5, "norm_num_groups": 6}
    assert detect_config(shapes_only(config), None, told) == config


def test_what_shapes_do_not_tell_is_asked_for() -> None:
    small, _ = official("vae_sd")
    with pytest.raises(ValueError) as refusal:
        detect_config(small)
    message = str(refusal.value)
    assert "--set norm_num_groups=GROUPS scaling_factor=FACTOR" in message
    assert "(8, 16) are not all multiples of 32" in message
    assert "0.18215 for SD-VAE, 0.13025 for SDXL-VAE" in message
    with pytest.raises(ValueError, match=r"--set scaling_factor=FACTOR$"):
        detect_config(shapes_only(model_config("SD-VAE")))


@pytest.mark.parametrize("case", ["vae_sd", "vae_sdxl"])
def test_config_json_tells_the_rest(case: str) -> None:
    state, hub = official(case)
    config = detect_config(state, hub=hub)
    for field in ("scaling_factor", "norm_num_groups", "layers_per_block", "latent_channels"):
        assert getattr(config, field) == hub[field]
    assert config.block_out_channels == tuple(hub["block_out_channels"])


def test_config_json_of_an_older_file() -> None:
    """It has no scaling factor: diffusers then takes that of Stable Diffusion."""
    state = shapes_only(model_config("SD-VAE"))
    hub = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "sample_size": 256}
    hub |= {"act_fn": "silu"}
    assert detect_config(state, hub=hub).scaling_factor == 0.18215
    # What the file does not say it does not contradict.
    asked = {"scaling_factor": 0.13025}
    assert detect_config(state, None, asked, hub=hub).scaling_factor == 0.13025
    assert detect_config(state, None, {}, asked, hub).scaling_factor == 0.13025
    assert detect_config(state, "SDXL-VAE", hub=hub).scaling_factor == 0.13025
    said = hub | {"scaling_factor": 0.18215}
    with pytest.raises(ValueError, match=r"asked for 0.13025, config.json .* 0.18215; edit that"):
        detect_config(state, None, asked, hub=said)
    with pytest.raises(ValueError, match="says 0.18215, the metadata of the weights 0.13025"):
        detect_config(state, None, {}, asked, said)
    with pytest.raises(ValueError, match="scaling_factor: 0.13025 in SDXL-VAE, 0.18215 beside"):
        detect_config(state, "SDXL-VAE", hub=said)


@pytest.mark.parametrize(
    ("entry", "value", "wanted"),
    [
        ("_class_name", "VQModel", "'AutoencoderKL'"),
        ("act_fn", "relu", "'silu'"),
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], "only 'DownEnc"),
        ("down_block_types", [["DownEncoderBlock2D"]], "only 'DownEnc"),
        ("down_block_types", [], "only 'DownEnc"),
        ("up_block_types", ["UpBlock2D"] * 2, "only 'UpDecoderBlock2D'"),
        ("mid_block_add_attention", False, "true"),
        ("use_quant_conv", False, "true"),
        ("use_post_quant_conv", False, "true"),
        ("shift_factor", 0.1159, "null or 0"),
        ("latents_mean", [0.0] * 4, "null"),
        ("latents_std", [1.0] * 4, "null"),
    ],
)
def test_other_networks_are_refused(entry: str, value: Any, wanted: str) -> None:
    state, hub = official("vae_sd")
    with pytest.raises(ValueError) as refusal:
        detect_config(state, hub=hub | {entry: value})
    assert f"{entry} is {value!r}; this package has {wanted}" in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "value", "needed"),
    [
        ("block_out_channels", ["8", 16], "block_out_channels[0] is '8' (str); it must be int"),
        ("block_out_channels", "8", "block_out_channels is '8' (str); it must be tuple"),
        ("layers_per_block", "1", "layers_per_block is '1' (str); it must be int"),
        ("scaling_factor", "0.18215", "scaling_factor is '0.18215' (str); it must be float"),
    ],
)
def test_entries_of_another_type(entry: str, value: Any, needed: str) -> None:
    state, hub = official("vae_sd")
    with pytest.raises(ValueError) as refusal:
        detect_config(state, hub=hub | {entry: value})
    assert f"config.json.{needed}" in str(refusal.value)


def test_unknown_entries_are_refused() -> None:
    state, hub = official("vae_sd")
    with pytest.raises(ValueError, match=r"double_z is False, an unknown entry"):
        detect_config(state, hub=hub | {"double_z": False})


def test_contradictions_are_refused() -> None:
    state, hub = official("vae_sd")
    with pytest.raises(ValueError, match=r"layers_per_block: asked for 2, the checkpoint has 1"):
        detect_config(state, None, {"layers_per_block": 2}, hub=hub)
    with pytest.raises(ValueError, match=r"block_out_channels: asked for \(128, 256, 512, 512\)"):
        detect_config(state, "SD-VAE")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("quant_conv.weight", r"key 'quant_conv.weight' is missing"),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", r"resnets.0.conv1.weight' is missing"),
    ],
)
def test_missing_keys_are_named(key: str, message: str) -> None:
    state, hub = official("vae_sd")
    del state[key]
    with pytest.raises(ValueError, match=message):
        detect_config(state, hub=hub)


def test_wrong_rank_is_named() -> None:
    state, hub = official("vae_sd")
    key = "encoder.down_blocks.1.resnets.0.conv1.weight"
    state[key] = state[key].reshape(16, -1)
    with pytest.raises(ValueError, match=rf"'{key}' has shape \(16, 72\); 4 axes are needed"):
        detect_config(state, hub=hub)


def test_other_layouts_are_refused() -> None:
    """CompVis training files have other keys, and those of a loss besides."""
    keys = ["encoder.down.0.block.0.conv1.weight", "encoder.mid.attn_1.q.weight", "loss.logvar"]
    with pytest.raises(ValueError, match="not a checkpoint of a known layout"):
        layout_of(keys)
