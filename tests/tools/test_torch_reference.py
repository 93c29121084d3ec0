"""The plain torch originals give the golden outputs, so a verify can be trusted."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lit_jax.models.family import architecture
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.pixart.config import KV_SAMPLINGS, PixArtConfig
from support.golden_cases import load_meta
from support.inception_cases import TINY, golden_weights, tiny_weights
from support.reference_cases import (
    FORWARD,
    GELU,
    dit_fields,
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
from tools.torch_reference import inception, layers, pixart

TINY_PIXART: Any = {"hidden_size": 48, "depth": 2, "num_heads": 3, "caption_channels": 8}


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


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="layout 'DiT/timm' .*DiT/diffusers, DiT/dit, DiT/lit"):
        torch_reference.outputs({}, "DiT/timm", {}, {})
    with pytest.raises(ValueError, match="family 'UNet' .*AutoencoderKL, CLEAR, DiG, DiT"):
        torch_reference.random_inputs("UNet", {})


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
