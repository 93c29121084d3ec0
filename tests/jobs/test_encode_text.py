"""Captions in the encode job: which are stored, as what, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import encode_cases
import numpy as np
import pytest
from encode_cases import SIZE, config_for, stored
from text_encoder_cases import write_text_encoder

from lit_jax.config import EncodeConfig, SourceConfig, TextConfig
from lit_jax.data.pipeline import make_train_iterator
from lit_jax.data.schema import read_null_caption, read_schema
from lit_jax.jobs.encode import encode
from lit_jax.jobs.text_features import load_text_encoder
from lit_jax.weights.fingerprint import text_encoder_identity

LENGTH = 12


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_cases.save_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("t5") / "tiny-t5")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_cases.save_captioned(tmp_path_factory.mktemp("images") / "train")


def text_config(vae: Path, images: Path, encoder: Path, **changes: Any) -> EncodeConfig:
    text = TextConfig(encoder=str(encoder), max_length=LENGTH, batch_size=1)
    source = SourceConfig(kind="folder", path=str(images), captions=("long.txt", "short.txt"))
    fields: dict[str, Any] = {"source": source, "text": text, "mirrors": False} | changes
    return config_for(vae, images, max_skipped_fraction=0.2, **fields)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, vae: Path, images: Path, text_encoder: Path
) -> Path:
    out = tmp_path_factory.mktemp("out") / "latents"
    return encode(text_config(vae, images, text_encoder), out, lambda _: None)


def test_features_are_those_of_the_text_encoder(
    finished: Path, images: Path, text_encoder: Path
) -> None:
    encoder = load_text_encoder(text_encoder)
    examples = stored(finished)
    assert len(examples) == 10
    lengths = set()
    for example in examples:
        name = example["name"].decode()
        for kind in ("long", "short"):
            file = images / name.replace(".png", f".{kind}.txt")
            tokens = example[f"tokens_{kind}"]
            assert tokens.dtype == np.float16
            if not file.exists():
                assert tokens.shape == (0, 16) and example[f"caption_{kind}"] == b""
                continue
            text = file.read_text()
            assert example[f"caption_{kind}"].decode() == text
            features_1xLxD, mask_1xL = encoder.features([text], LENGTH)
            count = int(mask_1xL.sum())
            assert tokens.shape == (count, 16)
            np.testing.assert_allclose(tokens, features_1xLxD[0, :count], rtol=1e-3, atol=1e-3)
            lengths.add(count)
    assert len(lengths) > 3 and max(lengths) == LENGTH


def test_schema_and_empty_caption(finished: Path, text_encoder: Path) -> None:
    schema = read_schema(finished)
    identity = dataclasses.asdict(text_encoder_identity(text_encoder))
    assert schema.captions == ("long", "short") and not schema.mirrors and not schema.buckets
    assert schema.text == {
        "encoder": identity,
        "max_length": LENGTH,
        "dtype": "float16",
        "width": 16,
    }
    wanted, mask_1xL = load_text_encoder(text_encoder).features([""], LENGTH)
    null = read_null_caption(finished, schema)
    assert mask_1xL.sum() == 1 and null.dtype == np.float32
    np.testing.assert_allclose(null, wanted[0], rtol=1e-5, atol=1e-5)


def test_training_reads_them(finished: Path) -> None:
    batches = make_train_iterator(finished.name, finished.parent, "train", 10, 0)
    batch = next(batches)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == batches.arrays
    assert batch["tokens"].shape == (10, LENGTH, 16) and batch["mask"].dtype == np.int8
    side = SIZE // 2
    assert batch["moments"].shape == (10, side, side, 8)
    known = {example[f"tokens_{kind}"].tobytes() for example in stored(finished) for kind in KINDS}
    for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
        count = int(mask.sum())
        assert count and mask[:count].all() and not tokens[count:].any()
        assert tokens[:count].tobytes() in known


KINDS = ("long", "short")


def test_images_without_any_caption_are_skipped(finished: Path) -> None:
    assert read_schema(finished).skipped == 1
    listed = json.loads((finished / "skipped.json").read_text())["images"]
    assert listed == [
        {
            "index": 10,
            "name": "010.png",
            "reason": "no caption: there is no 010.long.txt and no 010.short.txt",
        }
    ]
