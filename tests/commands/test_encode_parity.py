"""Encoding through converted diffusers weights, against diffusers on the same cropped pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.commands.encode.job import encode
from lit_jax.data.crop import center_crop
from lit_jax.data.latents.schema import read_schema
from lit_jax.data.registry import open_source
from support import encode_cases
from support.encode_cases import SIZE, config_for, stored
from support.live_parity import live_seed, randomise_
from tools.convert_torch_ckpt import main as convert

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def reference_moments(network: Any, pixels_SxSx3: np.ndarray) -> np.ndarray:
    """[h, w, 2 L]: what diffusers makes of uint8 pixels, with the normalisation of DiT's
    `ToTensor` and `Normalize(0.5, 0.5)`."""
    x = torch.from_numpy(np.ascontiguousarray(pixels_SxSx3)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        posterior = network.encode((x - 0.5) / 0.5).latent_dist
    return np.concatenate([posterior.mean[0], posterior.logvar[0]]).transpose(1, 2, 0)


def test_moments_equal_those_of_diffusers(tmp_path: Path) -> None:
    seed = live_seed()
    levels = 3
    network = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    ).eval()
    randomise_(network, seed)
    network.save_pretrained(tmp_path / "diffusers")
    converted = tmp_path / "vae"
    assert convert(["--src", str(tmp_path / "diffusers"), "--dst", str(converted)]) == 0

    images = encode_cases.save_images(tmp_path / "images", count=5, seed=seed)
    config = config_for(converted, images, resolution=2 * SIZE)
    encode(config, tmp_path / "out", lambda _: None)
    schema = read_schema(tmp_path / "out")
    assert schema.latent_shape == (8, 8, 4) and schema.vae["scaling_factor"] == 0.18215
    source = open_source(config.source)
    for index, example in enumerate(stored(tmp_path / "out")):
        pixels = center_crop(source.load(index), 2 * SIZE)
        for mirror, view in enumerate((pixels, pixels[:, ::-1])):
            wanted = reference_moments(network, view)
            np.testing.assert_allclose(example["moments"][mirror], wanted, rtol=1e-5, atol=1e-5)
