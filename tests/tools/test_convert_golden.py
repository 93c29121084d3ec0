"""The user's whole path on the files of the official implementations: convert, load, call.

Every form in which people hold the weights: torch files, safetensors, shards with an index, and
the folders of diffusers and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lit_jax
from support.golden_cases import golden_folders, load_arrays, nhwc, relative_error
from tools.convert_torch_ckpt import main

pytest.importorskip("torch")

FORWARD = 2e-5
PIXART = {"pixart_base": 3, "pixart_ms": 3, "pixart_ms_kvcompress": 3, "pixart_ms_micro": 3}
# There the heads of the cross-attention are given as the official constructor calls them.
PIXART |= {"lit_pixart_ms": 4}


def source_of(name: str) -> Path:
    """The golden file or folder `name`, or a skip where only the full set has it."""
    for folder in golden_folders():
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is only in the full golden set")


def converted(source: Path, tmp_path: Path, *flags: str) -> object:
    """The model of a checkpoint, through the command line and the disk."""
    assert main(["--src", str(source), "--dst", str(tmp_path / "m"), *flags]) == 0
    return lit_jax.load_model(tmp_path / "m")


def provenance(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "m" / "config.json").read_text())["provenance"]


@pytest.mark.parametrize("case", PIXART)
def test_official_pixart_files(case: str, tmp_path: Path) -> None:
    source = source_of(f"{case}.pt")
    model = converted(source, tmp_path, "--set", f"num_heads={PIXART[case]}")
    arrays = load_arrays(source.parent, case)
    size = (arrays.get("data_info/img_hw"), arrays.get("data_info/aspect_ratio"))
    for mask, expected in (
        (None, "out_nomask"),
        (arrays["mask"], "out_mask"),
        (arrays["mask_nonprefix"], "out_mask_nonprefix"),
    ):
        cond = lit_jax.TextCondition(arrays["y"][:, 0], mask, *size)
        out = model(nhwc(arrays["x"]), arrays["t"], cond)
        assert relative_error(out, nhwc(arrays[expected])) < FORWARD
    cond = lit_jax.TextCondition(arrays["y"][:, 0], arrays["mask"], *size)
    out = model(nhwc(arrays["x"]), arrays["t_fractional"], cond)
    assert relative_error(out, nhwc(arrays["out_t_fractional"])) < FORWARD
    np.testing.assert_array_equal(model.y_embedder.null_caption[...], arrays["null_caption"])


@pytest.mark.parametrize("sampling", ["ave", "uniform", "uniform_every"])
def test_other_samplings_of_compressed_keys(sampling: str, tmp_path: Path) -> None:
    source = source_of("pixart_ms_kvcompress.pt")
    flags = ["--set", "num_heads=3", f"kv_compress_config.sampling={sampling}"]
    model = converted(source, tmp_path, *flags)
    arrays = load_arrays(source.parent, "pixart_ms_kvcompress")
    cond = lit_jax.TextCondition(arrays["y"][:, 0], arrays["mask"])
    out = model(nhwc(arrays["x"]), arrays["t"], cond)
    assert relative_error(out, nhwc(arrays[f"out_mask_sampling_{sampling}"])) < FORWARD


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, "out_state_dict"), ("model", "out_state_dict"), ("ema", "out_state_dict_ema")],
)
def test_pixart_training_checkpoint(weights: str | None, expected: str, tmp_path: Path) -> None:
    """The official inference script loads `state_dict`; so does the default here."""
    source = source_of("pixart_ckpt.pth")
    flags = [] if weights is None else ["--weights", weights]
    model = converted(source, tmp_path, "--model", "PixArt", "--set", "num_heads=2", *flags)
    arrays = load_arrays(source.parent, "pixart_ckpt")
    cond = lit_jax.TextCondition(arrays["y"][:, 0], arrays["mask"])
    out = model(nhwc(arrays["x"]), arrays["t"], cond)
    assert relative_error(out, nhwc(arrays[expected])) < FORWARD
    assert provenance(tmp_path)["weights"] == (weights or "model")


@pytest.mark.parametrize("folder", ["hf_pixart", "hf_pixart_sharded", "hf_pixart_micro"])
def test_diffusers_pixart(folder: str, tmp_path: Path) -> None:
    source = source_of(folder)
    model = converted(source, tmp_path)
    arrays = load_arrays(source.parent, folder.removesuffix("_sharded"))
    size = (arrays.get("resolution"), arrays.get("aspect_ratio"))
    masks = {"out_nomask": None, "out_mask": arrays["encoder_attention_mask"]}
    for expected, mask in masks.items():
        if expected in arrays:
            cond = lit_jax.TextCondition(arrays["encoder_hidden_states"], mask, *size)
            out = model(nhwc(arrays["x"]), arrays["t"], cond)
            assert relative_error(out, nhwc(arrays[expected])) < FORWARD
    shards = provenance(tmp_path).get("files", {})
    assert len(shards) == (4 if folder.endswith("sharded") else 0)


def test_diffusers_dit_gives_the_official_output(tmp_path: Path) -> None:
    """diffusers itself gives another one: it computes the timestep embedding differently."""
    source = source_of("hf_dit")
    model = converted(source, tmp_path)
    arrays = load_arrays(source.parent, "hf_dit")
    out = model(nhwc(arrays["x"]), arrays["t"], arrays["y"])
    assert relative_error(out, nhwc(arrays["out_official"])) < FORWARD
    assert relative_error(out, nhwc(arrays["out_hf"])) > 0.1


@pytest.mark.parametrize("folder", ["vae_sd", "vae_sd_oldnames", "vae_sdxl"])
def test_diffusers_autoencoders(folder: str, tmp_path: Path) -> None:
    source = source_of(folder)
    model = converted(source, tmp_path)
    arrays = load_arrays(source.parent, folder.removesuffix("_oldnames"))
    moments = model.encode(nhwc(arrays["image"]))
    assert relative_error(moments, nhwc(arrays["moments"])) < FORWARD
    assert relative_error(model.decode(nhwc(arrays["z"])), nhwc(arrays["decoded"])) < FORWARD
    assert model.config.scaling_factor == (0.13025 if folder == "vae_sdxl" else 0.18215)


@pytest.mark.parametrize("folder", ["t5", "t5_sharded", "t5_bin", "t5_bin_sharded"])
def test_transformers_t5(folder: str, tmp_path: Path) -> None:
    source = source_of(folder)
    model = converted(source, tmp_path)
    arrays = load_arrays(source.parent, "t5")
    for length in ("short", "long"):
        tokens, mask = arrays[f"{length}/input_ids"], arrays[f"{length}/attention_mask"]
        assert relative_error(model(tokens, mask), arrays[f"{length}/out_mask"]) < FORWARD
