"""The originals of diffusers and transformers: built around the weights, equal to the official."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import architecture
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.t5.config import T5Config
from support.golden_cases import golden_folders, load_meta
from support.live_parity import live_seed
from support.reference_cases import (
    DOUBLE,
    FORWARD,
    HF_DIT,
    Fields,
    Tensors,
    error,
    joined,
    needed,
    pixart_fields,
    pixart_inputs,
    sources,
    tensors,
    weights,
)
from tools import torch_reference
from tools.torch_reference import dit, library


def doubled(values: Tensors, *names: str) -> Tensors:
    """`values` in double precision, all of them or those of `names`."""
    return {k: v.double() if k in (names or values) else v for k, v in values.items()}


def official_dit(state: Tensors, depth: int) -> Tensors:
    """The state dict of diffusers' DiT under the official names."""
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    }
    for i in range(depth):
        old, new = f"transformer_blocks.{i}", f"blocks.{i}"
        names |= {
            f"{old}.norm1.linear": f"{new}.adaLN_modulation.1",
            f"{old}.attn1.to_out.0": f"{new}.attn.proj",
            f"{old}.ff.net.0.proj": f"{new}.mlp.fc1",
            f"{old}.ff.net.2": f"{new}.mlp.fc2",
        }
    official = {
        f"{new}.{part}": state[f"{old}.{part}"]
        for old, new in names.items()
        for part in ("weight", "bias")
    }
    table = "embedding_table.weight"
    official[f"y_embedder.{table}"] = state[
        f"transformer_blocks.0.norm1.emb.class_embedder.{table}"
    ]
    for i in range(depth):
        for part in ("weight", "bias"):
            rows = [state[f"transformer_blocks.{i}.attn1.to_{name}.{part}"] for name in "qkv"]
            official[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(rows)
    return official


@sources("hf_dit")
def test_dit_of_diffusers(case: str, folder: Path) -> None:
    pytest.importorskip("diffusers")
    fields = architecture(HF_DIT)
    state, arrays = weights(case, folder), tensors(folder, case)
    inputs = {name: arrays[name] for name in ("x", "t", "y")}
    out = torch_reference.outputs(state, "DiT/diffusers", fields, inputs)
    assert error(joined(out), arrays["out_official"]) < FORWARD
    with torch.inference_mode():
        model = dit.use_constants(dit.build(state, fields), official=False)
        assert error(dit.call(model, inputs), arrays["out_hf"]) < FORWARD
        assert dit.deviation(state, fields, inputs) == pytest.approx(0.16662642, rel=1e-4)
    random = [torch_reference.diffusers_deviation(state, fields, seed) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2] and all(0.05 < value < 1 for value in random)


@sources("hf_dit")
def test_dit_of_diffusers_is_the_plain_one_in_double_precision(case: str, folder: Path) -> None:
    """Where the epsilon of a norm shows, which single precision hides."""
    pytest.importorskip("diffusers")
    fields = architecture(HF_DIT)
    state = doubled(weights(case, folder))
    inputs = doubled(torch_reference.random_inputs("DiT", fields, live_seed()), "x")
    out = joined(torch_reference.outputs(state, "DiT/diffusers", fields, inputs))
    official = official_dit(state, fields["depth"])
    expected = joined(torch_reference.outputs(official, "DiT/dit", fields, inputs))
    assert error(out, expected) < DOUBLE


@pytest.mark.parametrize(
    ("case", "weights_of"), [("hf_pixart", "pixart_base"), ("hf_pixart_micro", "pixart_ms_micro")]
)
def test_pixart_of_diffusers(case: str, weights_of: str) -> None:
    """Against its own golden outputs, and on other sizes against the plain network, where double
    precision shows the epsilon of a norm."""
    pytest.importorskip("diffusers")
    folder = next((f for f in golden_folders() if (f / f"{case}.npz").exists()), None)
    if folder is None or not (folder / f"{weights_of}.json").exists():
        pytest.skip(f"{case} is only in the full golden set")
    fields, state = pixart_fields(folder, weights_of), weights(case, folder)
    arrays = tensors(folder, case)
    names = {"tokens": "encoder_hidden_states", "mask": "encoder_attention_mask"}
    if fields["micro_condition"]:
        names |= {"img_hw": "resolution", "aspect_ratio": "aspect_ratio"}
    inputs = pixart_inputs(arrays, **names)
    layout = "PixArt/diffusers"
    for expected in needed(arrays, "out_mask", "official_out_mask"):
        out = joined(torch_reference.outputs(state, layout, fields, inputs))
        assert error(out, expected) < FORWARD

    inputs = torch_reference.random_inputs("PixArt", fields, live_seed())
    inputs, state = doubled(inputs, "x", "tokens"), doubled(state)
    rows, columns = inputs["x"].shape[2:]
    assert rows != columns
    official = doubled(weights(weights_of, folder))
    expected = joined(torch_reference.outputs(official, "PixArt/pixart", fields, inputs))
    spare = {"caption_projection.y_embedding": torch.zeros(12, 32)}
    out = joined(torch_reference.outputs(state | spare, layout, fields, inputs))
    assert error(out, expected) < DOUBLE


@pytest.mark.parametrize(
    ("case", "name"),
    [("vae_sd", "vae_sd"), ("vae_sd", "vae_sd_oldnames"), ("vae_sdxl", "vae_sdxl")],
)
def test_autoencoder(case: str, name: str) -> None:
    pytest.importorskip("diffusers")
    folder = next((f for f in golden_folders() if (f / f"{case}.npz").exists()), None)
    if folder is None:
        pytest.skip(f"{case} is only in the full golden set")
    fields = autoencoder_fields(folder, case)
    image, latent, moments, decoded = needed(
        tensors(folder, case), "image", "z", "moments", "decoded"
    )
    state = weights(name, folder)
    old = any("proj_attn" in key for key in state)
    assert old == (name == "vae_sd_oldnames")
    layout = "AutoencoderKL/diffusers-old" if old else "AutoencoderKL/diffusers"
    out = torch_reference.outputs(state, layout, fields, {"image": image, "latent": latent})
    assert error(out["moments"], moments) < FORWARD and error(out["decoded"], decoded) < FORWARD
    assert any("proj_attn" in key for key in state) == old, "the caller's state dict was changed"


def autoencoder_fields(folder: Path, case: str) -> Fields:
    official = json.loads((folder / case / "config.json").read_text())
    fields = architecture(AutoencoderConfig())
    known = {key: official[key] for key in fields if key in official}
    assert set(fields) - set(known) == {"family"}
    return architecture(AutoencoderConfig(**known))


@pytest.mark.parametrize("stored", ["t5", "t5_bin", "whole"])
@sources("t5")
def test_t5(case: str, folder: Path, stored: str) -> None:
    """One table or both, alone or with the decoder that the encoder has no use of."""
    pytest.importorskip("transformers")
    state, arrays = weights("t5" if stored == "whole" else stored, folder), tensors(folder, case)
    if stored == "whole":
        state |= {"decoder.final_layer_norm.weight": torch.ones(3), "lm_head.weight": torch.ones(3)}
    fields = architecture(T5Config(**load_meta(folder, case)["config"]))
    for length in ("short", "long"):
        names = (f"{length}/input_ids", f"{length}/attention_mask", f"{length}/out_mask")
        token_ids, mask, masked = needed(arrays, *names)
        inputs = {"token_ids": token_ids, "mask": mask}
        out = torch_reference.outputs(state, "T5/transformers", fields, inputs)
        assert error(out["last_hidden_state"], masked) < FORWARD
    (unmasked,) = needed(arrays, "long/out_nomask")
    out = torch_reference.outputs(state, "T5/transformers", fields, {"token_ids": token_ids})
    assert error(out["last_hidden_state"], unmasked) < FORWARD


@sources("hf_dit")
def test_library_models_hold_the_given_tensors(case: str, folder: Path) -> None:
    """No second copy of the weights, and nothing left without memory."""
    pytest.importorskip("diffusers")
    state = weights(case, folder)
    fields = architecture(HF_DIT)
    model = dit.build(state, fields)
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(state)
    assert all(parameters[key].data_ptr() == state[key].data_ptr() for key in state)
    assert not model.pos_embed.pos_embed.is_meta


@sources("hf_dit")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": [16, 24]}, "input_size 16x24 is not square"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"hidden_size": 64}, "does not take these weights.*size mismatch"),
        ({"depth": 3}, "does not take these weights.*Missing key"),
        ({"qkv_bias": False}, "does not take these weights.*Unexpected key"),
    ],
)
def test_what_diffusers_cannot_be(case: str, folder: Path, changes: Fields, message: str) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        dit.build(weights(case, folder), architecture(HF_DIT) | changes)


def test_diffusers_has_one_number_of_heads() -> None:
    pytest.importorskip("diffusers")
    fields = architecture(PixArtConfig(cross_num_heads=8))
    with pytest.raises(ValueError, match="cross_num_heads is 8 and num_heads 16"):
        torch_reference.outputs({}, "PixArt/diffusers", fields, {})


@pytest.mark.parametrize(
    ("name", "layout", "config"),
    [
        ("diffusers", "DiT/diffusers", DiTConfig()),
        ("diffusers", "PixArt/diffusers", PixArtConfig()),
        ("diffusers", "AutoencoderKL/diffusers-old", AutoencoderConfig()),
        ("transformers", "T5/transformers", T5Config()),
    ],
)
def test_missing_library(
    name: str, layout: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"{name}, .*pip install 'lit_jax\[verify\]'"):
        torch_reference.outputs({}, layout, architecture(config), {})


def test_tensor_that_is_nowhere_is_named() -> None:
    def build() -> Any:
        module = torch.nn.Linear(2, 2)
        module.register_buffer("table", torch.zeros(2), persistent=False)
        return module

    with pytest.raises(ValueError, match="table of Linear is in no file"):
        library.filled(build, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
