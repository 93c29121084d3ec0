"""Random inputs of a verify reach what could go wrong: null class, masks, sizes, far distances."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import architecture
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.models.t5.config import T5Config
from tools import torch_reference

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
