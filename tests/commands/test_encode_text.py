"""Captions in the encode job: which are stored, as what, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.quantise import quantise_t5
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.encode.job import encode
from lit_jax.config import EncodeConfig, SourceConfig, TextConfig
from lit_jax.data.latents.schema import read_null_caption, read_schema
from lit_jax.data.pipeline import make_train_iterator
from lit_jax.data.tokenizer import load_tokenizer
from lit_jax.runs import requests
from lit_jax.sampling.text_features import load_text_encoder
from support import encode_cases
from support.encode_cases import SIZE, config_for, stored
from support.kills import contents
from support.models import load_model_dir, text_encoder_identity
from support.text_encoder_cases import write_text_encoder, write_tokenizer

LENGTH = 9
KINDS = ("long", "short")


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
    """Ten images with captions, in two shards."""
    out, said = tmp_path_factory.mktemp("out") / "latents", list[str]()
    encode(text_config(vae, images, text_encoder), out, said.append)
    assert f"and captions with {text_encoder}: 2 shards" in said[0]
    texts = [path.read_text() for path in images.glob("*.txt")]
    mask_NxL = load_tokenizer(text_encoder)(texts, 100)[1]
    cut = int((mask_NxL.sum(axis=1) > LENGTH).sum())
    assert 2 < cut < 10 and said[-1] == f"{cut} captions were cut to {LENGTH} tokens"
    return out


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


# --- dtypes ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_dtypes(
    dtype: str, finished: Path, vae: Path, images: Path, text_encoder: Path, tmp_path: Path
) -> None:
    config = text_config(vae, images, text_encoder)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, dtype=dtype))
    encode(config, tmp_path / "out", lambda _: None)
    for found, wanted in zip(stored(tmp_path / "out"), stored(finished), strict=True):
        for kind in KINDS:
            tokens = found[f"tokens_{kind}"]
            assert tokens.dtype == np.dtype(dtype)
            close = {"rtol": 1e-2, "atol": 1e-2} if dtype == "bfloat16" else {"rtol": 1e-3}
            expected = wanted[f"tokens_{kind}"].astype(np.float32)
            np.testing.assert_allclose(tokens.astype(np.float32), expected, **close)
    batch = next(make_train_iterator("out", tmp_path, "train", 10, 0))
    assert batch["tokens"].dtype == np.dtype(dtype)


def test_features_beyond_float16(vae: Path, images: Path, tmp_path: Path) -> None:
    """Nothing is stored as infinity; the message says what to do."""
    config, params = load_model_dir(write_text_encoder(tmp_path / "quiet"))
    params["final_norm"]["scale"] = 1e6 * np.asarray(params["final_norm"]["scale"])
    encoder = tmp_path / "loud"
    save_model_dir(encoder, config, params, {})
    write_tokenizer(encoder)
    config = text_config(vae, images, encoder)
    message = (
        r"the features of the empty caption reach \d.*, more than float16 can hold; set"
        " text.dtype to float32 or bfloat16 and encode into another folder"
    )
    with pytest.raises(ValueError, match=message):
        encode(config, tmp_path / "out", lambda _: None)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, dtype="bfloat16"))
    encode(config, tmp_path / "other", lambda _: None)
    assert max(np.abs(e["tokens_long"]).max(initial=0) for e in stored(tmp_path / "other")) > 65504


# --- going on, and being refused ---


def test_empty_caption_is_written_once(
    finished: Path, vae: Path, images: Path, text_encoder: Path, tmp_path: Path
) -> None:
    """Also when all shards are there, as after a kill that left everything but the end."""
    out = shutil.copytree(finished, tmp_path / "out")
    config = text_config(vae, images, text_encoder)
    said: list[str] = []
    encode(config, out, said.append)
    assert len(said) == 1 and "nothing to do" in said[0]
    (out / "schema.json").unlink()
    (out / "null_caption.npy").unlink()
    encode(config, out, said.append)
    assert contents(out) == contents(finished)


OTHER_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"max_length": 8}, "text.max_length is 9, asked for is 8"),
    "dtype": ({"dtype": "float32"}, "text.dtype is float16, asked for is float32"),
    "batch": ({"batch_size": 2}, "text.batch_size is 1, asked for is 2"),
    "none": ({"encoder": ""}, "text.batch_size is 1, asked for is nothing; text.dtype is float16"),
}


@pytest.mark.parametrize("case", OTHER_REQUESTS)
def test_another_request_is_refused(
    case: str, finished: Path, vae: Path, images: Path, text_encoder: Path
) -> None:
    changes, message = OTHER_REQUESTS[case]
    config = text_config(vae, images, text_encoder)
    text = dataclasses.replace(config.text, **changes)
    with pytest.raises(ValueError, match=f"belongs to another request: .*{message}"):
        encode(dataclasses.replace(config, text=text), finished, lambda _: None)


def test_another_text_encoder_is_refused_and_a_moved_one_is_not(
    finished: Path, vae: Path, images: Path, text_encoder: Path, tmp_path: Path
) -> None:
    other = write_text_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"another request: text.encoder.sha256 is \w+\.\.\., ask"):
        encode(text_config(vae, images, other), finished, lambda _: None)
    quantise_t5(text_encoder, tmp_path / "int8")
    differing = "text.encoder.weights is float32, asked for is .*int8;"
    with pytest.raises(ValueError, match=differing):
        encode(text_config(vae, images, tmp_path / "int8"), finished, lambda _: None)
    moved = shutil.copytree(text_encoder, tmp_path / "moved")
    said: list[str] = []
    encode(text_config(vae, images, moved), finished, said.append)
    assert "nothing to do" in said[0]


def test_refusals_before_anything_is_written(
    vae: Path, images: Path, text_encoder: Path, tmp_path: Path
) -> None:
    speechless = shutil.copytree(text_encoder, tmp_path / "t5")
    (speechless / "tokenizer/spiece.model").unlink()
    for encoder, message in (
        (vae, "holds an AutoencoderKL; a text encoder .T5. is needed"),
        (speechless, "t5 has no tokenizer/spiece.model"),
        (tmp_path / "nowhere", "nowhere is not a model folder"),
    ):
        with pytest.raises(ValueError, match=message):
            encode(text_config(vae, images, encoder), tmp_path / "out", lambda _: None)
    with pytest.raises(ValueError, match="mirrors is True, but captions do not fit mirror images"):
        text_config(vae, images, text_encoder, mirrors=True)
    assert not (tmp_path / "out").exists()


def test_disk_space_counts_tokens(
    vae: Path, images: Path, text_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config(vae, images, text_encoder)
    texts = [path.read_text() for path in images.glob("*.txt")]
    tokens = int(load_tokenizer(text_encoder)(texts, LENGTH)[1].sum())
    needed = 11 * (8 * 8 * 8 * 4 + 256) + tokens * 16 * 2 + 2 * 131072
    usage = namedtuple("usage", "free")
    # Rounded up per image.
    monkeypatch.setattr(requests.shutil, "disk_usage", lambda _: usage(needed - 1))
    with pytest.raises(ValueError, match="GB for 11 images, .* GB are free"):
        encode(config, tmp_path / "out", lambda _: None)
    monkeypatch.setattr(requests.shutil, "disk_usage", lambda _: usage(needed + 11))
    encode(config, tmp_path / "out", lambda _: None)
