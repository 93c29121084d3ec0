"""Golden cases as the torch originals take them: weights, architectures, inputs. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import architecture
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from support.golden_cases import golden_folders, golden_sources, load_arrays, load_meta

Tensors = dict[str, torch.Tensor]
Fields = dict[str, Any]

# Largest accepted errors: one forward pass in single precision, one with the GELU kernel of linear
# attention (its denominators can be small), and one in double precision.
FORWARD, GELU, DOUBLE = 1e-5, 5e-5, 1e-12

HF_DIT = DiTConfig(input_size=16, hidden_size=32, depth=2, num_heads=4, num_classes=10)
"""The model of the case hf_dit."""


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
