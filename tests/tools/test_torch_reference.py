"""The torch originals behind `--verify` give the golden outputs, so a verify can be trusted."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from inception_cases import TINY, golden_weights, tiny_weights  # noqa: E402
from live_parity import live_seed  # noqa: E402

from golden_cases import golden_folders, golden_sources, load_arrays, load_meta  # noqa: E402
from lit_jax.config import (  # noqa: E402
    KV_SAMPLINGS,
    AutoencoderConfig,
    DiTConfig,
    InceptionConfig,
    KVCompressConfig,
    PixArtConfig,
    T5Config,
    architecture,
)
from tools import torch_reference  # noqa: E402
from tools.torch_reference import dit, inception, layers, library, pixart  # noqa: E402

FORWARD, GELU, DOUBLE = 1e-5, 5e-5, 1e-12

Tensors = dict[str, torch.Tensor]
Fields = dict[str, Any]


def sources(*cases: str) -> Any:
    """Parametrises (case, folder) over the golden folders; a case that is nowhere is skipped."""
    found = []
    for case in cases:
        try:
            folders = golden_sources(f"{case}.npz")
        except FileNotFoundError:
            reason = f"{case} is only in the full golden set"
            found.append(pytest.param(case, None, id=case, marks=pytest.mark.skip(reason)))
            continue
        found += [pytest.param(case, *f.values, id=f"{case}-{f.id}") for f in folders]
    return pytest.mark.parametrize(("case", "folder"), found)


def tensors(folder: Path, case: str) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in load_arrays(folder, case).items()}


def needed(arrays: Tensors, *names: str) -> list[torch.Tensor]:
    """Arrays by name; skips where a copy of a case leaves one out."""
    for name in names:
        if name not in arrays:
            pytest.skip(f"this copy holds no {name!r}; the full golden set does")
    return [arrays[name] for name in names]


def weights(name: str, preferred: Path) -> Tensors:
    """The state dict `name`, a file without suffix or a folder; skips where it is nowhere."""
    from safetensors.torch import load_file

    for folder in dict.fromkeys([preferred, *golden_folders()]):
        for path in [*folder.glob(f"{name}.*"), *folder.glob(f"{name}/*")]:
            if path.suffix == ".safetensors":
                return load_file(path)
            if path.suffix in (".pt", ".bin"):
                return torch.load(path, map_location="cpu", weights_only=True)
    pytest.skip(f"the weights {name} are only in the full golden set")


def joined(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Noise and variance as the one tensor that the official networks return."""
    assert list(outputs) in (["noise"], ["noise", "variance"])
    return torch.cat(list(outputs.values()), dim=1)


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute error over the largest expected magnitude."""
    assert value.shape == expected.shape and value.dtype == expected.dtype
    return float((value - expected).abs().max() / expected.abs().max())


def dit_fields(folder: Path, case: str) -> Fields:
    meta = load_meta(folder, case)
    mixer = {"mixer": "linear"} if "attn" in meta else {}
    return architecture(DiTConfig(**meta["config"] | meta.get("attn", {}) | mixer))


def pixart_fields(folder: Path, case: str) -> Fields:
    meta = load_meta(folder, case)
    fields = {key: value for key, value in meta["config"].items() if key != "pred_sigma"}
    fields["learn_sigma"] = meta["config"]["pred_sigma"]
    if fields.get("kv_compress_config"):
        fields["kv_compress_config"] = KVCompressConfig(**fields["kv_compress_config"])
    if "attn" in meta:
        fields |= {"cross_num_heads": fields["num_heads"], "mixer": "linear"} | meta["attn"]
    return architecture(PixArtConfig(**fields))


def pixart_inputs(arrays: Tensors, **names: str) -> Tensors:
    """Inputs under our names from golden arrays; `names` replaces the official ones."""
    official = {"x": "x", "t": "t", "tokens": "y", "mask": "mask"}
    sizes = {"img_hw": "data_info/img_hw", "aspect_ratio": "data_info/aspect_ratio"}
    chosen = official | {key: name for key, name in sizes.items() if name in arrays} | names
    inputs = dict(zip(chosen, needed(arrays, *chosen.values()), strict=True))
    # Official captions are [B, 1, L, channels], those of diffusers [B, L, channels].
    return inputs | {"tokens": inputs["tokens"].flatten(0, -3)}


@sources("dit_p2", "dit_p4", "dit_p8_nosigma_nodrop", "lit_dit_p2")
def test_dit(case: str, folder: Path) -> None:
    fields, arrays, state = dit_fields(folder, case), tensors(folder, case), weights(case, folder)
    layout = "DiT/dit" if fields["mixer"] == "softmax" else "DiT/lit"
    inputs = {name: arrays[name] for name in ("x", "t", "y")}
    assert error(joined(torch_reference.outputs(state, layout, fields, inputs)), arrays["out"]) < (
        FORWARD
    )
    if "t_fractional" in arrays:
        inputs["t"] = arrays["t_fractional"]
        out = joined(torch_reference.outputs(state, layout, fields, inputs))
        assert error(out, arrays["out_t_fractional"]) < FORWARD


@sources("dit_p2")
def test_dit_adds_the_position_table_of_the_file(case: str, folder: Path) -> None:
    fields, state = dit_fields(folder, case), weights(case, folder)
    inputs = torch_reference.random_inputs("DiT", fields)
    table = state.pop("pos_embed")
    outs = [
        joined(torch_reference.outputs(state | pos_embed, "DiT/dit", fields, inputs))
        for pos_embed in ({}, {"pos_embed": table}, {"pos_embed": -table})
    ]
    assert error(outs[1], outs[0]) < FORWARD and error(outs[2], outs[0]) > 0.01


@sources("lit_attention")
def test_linear_mixers(case: str, folder: Path) -> None:
    state, arrays = weights(case, folder), tensors(folder, case)
    tested = set()
    for name, meta in load_meta(folder, case)["cases"].items():
        # The Swin variant has one fused projection, which is no layout here.
        if meta.get("kind") == "swin" or f"{name}/x" not in arrays:
            continue
        own = {
            f"attn.{key.removeprefix(f'{name}/')}": value
            for key, value in state.items()
            if key.startswith(f"{name}/")
        }
        fields = {
            "num_heads": meta["num_heads"],
            "mixer": "focused" if "attn.scale" in own else "linear",
            "kernel_fn": "gelu" if "gelu" in name else "relu",
        }
        x, grid = arrays[f"{name}/x"], tuple(meta["HW"])
        limit = GELU if "gelu" in name else FORWARD
        out = layers.linear_attention(own, "attn", fields, x, grid)
        assert error(out, arrays[f"{name}/out"]) < limit, name
        tested.add((fields["mixer"], fields["kernel_fn"], "attn.dwc.weight" in own))
    assert {("linear", "relu", True), ("linear", "relu", False), ("linear", "gelu", True)} < tested
    assert ("focused", "relu", True) in tested


@sources("pixart_base", "pixart_ms", "pixart_ms_kvcompress", "pixart_ms_micro", "lit_pixart_ms")
@pytest.mark.parametrize("names", [{}, {"mask": "mask_nonprefix"}, {"t": "t_fractional"}])
def test_pixart(case: str, folder: Path, names: dict[str, str]) -> None:
    fields, state = pixart_fields(folder, case), weights(case, folder)
    arrays = tensors(folder, case)
    layout = "PixArt/pixart" if fields["mixer"] == "softmax" else "PixArt/lit"
    inputs = pixart_inputs(arrays, **names)
    expected = {(): "out_mask"} | {(v,): f"out_{v}" for v in ("mask_nonprefix", "t_fractional")}
    (official,) = needed(arrays, expected[tuple(names.values())])
    out = joined(torch_reference.outputs(state, layout, fields, inputs))
    assert error(out, official) < FORWARD
    if not names:
        (unmasked,) = needed(arrays, "out_nomask")
        del inputs["mask"]
        out = joined(torch_reference.outputs(state, layout, fields, inputs))
        assert error(out, unmasked) < FORWARD


@sources("pixart_ms_kvcompress")
@pytest.mark.parametrize("sampling", [name for name in KV_SAMPLINGS if name != "conv"])
def test_key_value_samplings(case: str, folder: Path, sampling: str) -> None:
    fields, arrays = pixart_fields(folder, case), tensors(folder, case)
    (expected,) = needed(arrays, f"out_mask_sampling_{sampling}")
    fields["kv_compress_config"]["sampling"] = sampling
    inputs = pixart_inputs(arrays)
    out = torch_reference.outputs(weights(case, folder), "PixArt/pixart", fields, inputs)
    assert error(joined(out), expected) < FORWARD


@sources("hf_dit")
def test_dit_of_diffusers(case: str, folder: Path) -> None:
    pytest.importorskip("diffusers")
    fields = architecture(
        DiTConfig(input_size=16, hidden_size=32, depth=2, num_heads=4, num_classes=10)
    )
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
def test_dit_of_diffusers_is_the_plain_one_in_double_precision(case: str, folder: Path) -> None:
    """Where the epsilon of a norm shows, which single precision hides."""
    pytest.importorskip("diffusers")
    fields = architecture(
        DiTConfig(input_size=16, hidden_size=32, depth=2, num_heads=4, num_classes=10)
    )
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


@sources("inception")
@pytest.mark.parametrize("preprocessing", ["tf1", "pytorch_fid"])
def test_inception(case: str, folder: Path, preprocessing: str) -> None:
    state = {key: torch.from_numpy(value) for key, value in golden_weights(folder).items()}
    arrays = tensors(folder, case)
    fields = architecture(InceptionConfig(preprocessing=preprocessing))
    inputs = {"images": arrays["32x32/images_u8_nhwc"][:1].permute(0, 3, 1, 2)}
    out = torch_reference.outputs(state, "Inception/pytorch-fid", fields, inputs)
    official = {
        "pool3": "2048",
        "logits": "logits",
        "spatial": "spatial_mixed6d_branch1x1_first7",
    }
    assert set(out) == set(official)
    for name, golden in official.items():
        expected = arrays[f"32x32/{preprocessing}/{golden}"][:1]
        assert error(out[name], expected) < FORWARD, name


@sources("inception")
@pytest.mark.parametrize("size", ["64x64", "256x256"])
def test_inception_resizing(case: str, folder: Path, size: str) -> None:
    arrays = tensors(folder, case)
    (images,) = needed(arrays, f"{size}/images_u8_nhwc")
    images = images.permute(0, 3, 1, 2).float()
    got = {
        "tf1": inception.resized_tf1(images) * 128 + 128,
        "pytorch_fid": (inception.resized_half_pixel(images) + 1) / 2,
    }
    for name, levels in (("tf1", "0_255"), ("pytorch_fid", "0_1")):
        expected = arrays[f"{size}/{name}/resized_{levels}_every13"]
        assert error(got[name][:, :, ::13, ::13], expected) < FORWARD, name


TINY_PIXART = {"hidden_size": 48, "depth": 2, "num_heads": 3, "caption_channels": 8}


def test_random_inputs_of_dit() -> None:
    def labels(**fields: Any) -> list[int]:
        return torch_reference.random_inputs("LiT", architecture(DiTConfig(**fields)))["y"].tolist()

    assert labels()[-1] == 1000 and labels(class_dropout_prob=0.0)[-1] == 999
    fields = architecture(DiTConfig(num_classes=0, input_size=(16, 24), in_channels=3))
    inputs = torch_reference.random_inputs("DiT", fields)
    assert set(inputs) == {"x", "t"} and inputs["x"].shape == (3, 3, 16, 24)
    assert inputs["t"].tolist() == [0, 417.5, 999]


def test_random_inputs_follow_the_seed() -> None:
    fields = architecture(DiTConfig())
    a, b, c = (torch_reference.random_inputs("DiT", fields, seed)["x"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("input_size", [16, 64, 256, (32, 64)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_random_images_of_pixart_divide(input_size: Any, factor: int) -> None:
    compression = KVCompressConfig(scale_factor=factor, kv_compress_layer=(1,))
    config = PixArtConfig(input_size=input_size, kv_compress_config=compression, **TINY_PIXART)
    inputs = torch_reference.random_inputs("PixArt", architecture(config))
    rows, columns = (side // 2 for side in inputs["x"].shape[2:])
    assert rows % factor == 0 == columns % factor and rows != columns and rows * columns <= 384


def test_random_captions_of_pixart() -> None:
    config = PixArtConfig(micro_condition=True, model_max_length=None, **TINY_PIXART)
    inputs = torch_reference.random_inputs("PixArt", architecture(config))
    full, short, holes = inputs["mask"].bool()
    assert inputs["tokens"].shape == (3, 120, 8) and inputs["mask"].shape == (3, 120)
    assert full.all() and short[:40].all() and not short[40:].any()
    assert holes[-1] and not holes.all()
    assert inputs["img_hw"].shape == (3, 2) and inputs["aspect_ratio"].shape == (3, 1)
    one = architecture(PixArtConfig(model_max_length=1, **TINY_PIXART))
    assert torch_reference.random_inputs("PixArt", one)["mask"].all()


def test_random_grid_of_a_position_encoding_is_the_nominal_one() -> None:
    config = PixArtConfig(mixer="focused", input_size=(32, 48), **TINY_PIXART)
    inputs = torch_reference.random_inputs("PixArt", architecture(config))
    assert inputs["x"].shape == (3, 4, 32, 48)


def test_random_texts_pass_the_last_bucket() -> None:
    for distance in (128, 200):
        fields = architecture(T5Config(relative_attention_max_distance=distance))
        inputs = torch_reference.random_inputs("T5", fields)
        assert inputs["token_ids"].shape[1] > distance + 1
        assert int(inputs["token_ids"].max()) < 32128
        kept = inputs["mask"].sum(dim=1) / inputs["mask"].shape[1]
        assert kept[0] == 1 and all(0 < share < 1 for share in kept[1:])


def test_random_images() -> None:
    fields = architecture(AutoencoderConfig())
    inputs = torch_reference.random_inputs("AutoencoderKL", fields)
    rows, columns = inputs["latent"].shape[2:]
    assert rows != columns and inputs["image"].shape == (2, 3, 8 * rows, 8 * columns)
    assert -1 <= inputs["image"].min() < -0.9 and 0.9 < inputs["image"].max() <= 1
    images = torch_reference.random_inputs("Inception", architecture(InceptionConfig()))["images"]
    assert images.dtype == torch.uint8 and images.shape[:2] == (2, 3)
    assert images.min() < 30 and images.max() > 225


def test_positions_of_a_nominal_size_that_is_not_square() -> None:
    """At the nominal size the coordinates are the token's own row and column."""
    fields = architecture(PixArtConfig(input_size=(16, 24), **TINY_PIXART))
    expected = layers.position_table(torch.arange(8), torch.arange(12), 48)
    torch.testing.assert_close(pixart.positions(fields, (8, 12), 48), expected)


def test_heads_of_the_cross_attention() -> None:
    def heads(**fields: Any) -> int:
        return pixart.cross_heads(architecture(PixArtConfig(**fields)))

    assert heads() == 16 and heads(num_heads=8) == 8
    assert heads(mixer="linear", num_heads=2) == 16
    assert heads(mixer="linear", **TINY_PIXART) == 3
    assert heads(mixer="linear", num_heads=2, cross_num_heads=4) == 4


@sources("hf_dit")
def test_library_models_hold_the_given_tensors(case: str, folder: Path) -> None:
    """No second copy of the weights, and nothing left without memory."""
    pytest.importorskip("diffusers")
    state = weights(case, folder)
    fields = architecture(
        DiTConfig(input_size=16, hidden_size=32, depth=2, num_heads=4, num_classes=10)
    )
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
    config = DiTConfig(input_size=16, hidden_size=32, depth=2, num_heads=4, num_classes=10)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        dit.build(weights(case, folder), architecture(config) | changes)


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


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="layout 'DiT/timm' .*DiT/diffusers, DiT/dit, DiT/lit"):
        torch_reference.outputs({}, "DiT/timm", {}, {})
    with pytest.raises(ValueError, match="family 'UNet' .*AutoencoderKL, DiT"):
        torch_reference.random_inputs("UNet", {})


def test_tensor_that_is_nowhere_is_named() -> None:
    def build() -> Any:
        module = torch.nn.Linear(2, 2)
        module.register_buffer("table", torch.zeros(2), persistent=False)
        return module

    with pytest.raises(ValueError, match="table of Linear is in no file"):
        library.filled(build, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})


def test_outputs_need_no_gradients_and_leave_the_state_alone() -> None:
    fields = architecture(TINY)
    state = {key: torch.from_numpy(value) for key, value in tiny_weights().items()}
    before = {key: value.clone() for key, value in state.items()}
    inputs = torch_reference.random_inputs("Inception", fields)
    out = torch_reference.outputs(state, "Inception/pytorch-fid", fields, inputs)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "pool3": (2, 128),
        "logits": (2, 10),
        "spatial": (2, 7, 17, 17),
    }
    assert all(value.is_inference() and np.isfinite(value.numpy()).all() for value in out.values())
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_nothing_is_imported_from_the_package() -> None:
    """A mistake that both sides share would hide."""
    folder = Path(torch_reference.__file__).parent
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 6
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            names += [getattr(node, "module", None) or ""]
            assert not any(name.startswith("lit_jax") for name in names), path.name
