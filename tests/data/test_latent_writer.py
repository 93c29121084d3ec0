"""Records and the description of latents: what TFDS reads back, and the same bytes again."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lit_jax.data.latents.schema import LatentSchema, dataset_folder
from lit_jax.data.latents.writer import (
    LatentExample,
    estimated_bytes,
    record_file,
    write_metadata,
    write_records,
)
from lit_jax.runs.output import remove_leftovers

SCHEMA = LatentSchema(
    vae={},
    dtype="float32",
    precision="highest",
    resolution=16,
    latent_shape=(4, 3, 2),
    mirrors=True,
    count=5,
    skipped=0,
    classes=("cat", "dog"),
    captions=("long", "short"),
    text={"max_length": 4, "dtype": "float16", "width": 3},
    buckets=(),
    source={"split": "validation"},
)


def example(index: int, schema: LatentSchema = SCHEMA, scale: float = 1.0) -> LatentExample:
    moments = np.random.default_rng(index).standard_normal(schema.moments_shape, np.float32)
    captions = [f"caption {index} ü", "" if index == 1 else "short"]
    tokens = [np.full((index, 3), index, np.float32), np.zeros((int(bool(captions[1])), 3))]
    return LatentExample(f"é/{index}.png", scale * moments, index % 2, captions, tokens)


def write(folder: Path, schema: LatentSchema, counts: tuple[int, ...] = (3, 0, 2)) -> None:
    """A whole data set; the shard in the middle has no examples, as when all images are broken."""
    first = 0
    for shard, count in enumerate(counts):
        path = record_file(folder, schema, shard, len(counts))
        examples = (example(index, schema) for index in range(first, first + count))
        assert write_records(path, schema, examples) == count
        first += count
    size = write_metadata(folder, schema, counts)
    assert size == sum(path.stat().st_size for path in dataset_folder(folder).glob("*record-*"))


def read(folder: Path, split: str) -> list[dict[str, object]]:
    return list(tfds.builder_from_directory(dataset_folder(folder)).as_data_source(split))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mirrors", [True, False])
def test_tfds_reads_it(tmp_path: Path, dtype: str, mirrors: bool) -> None:
    schema = dataclasses.replace(SCHEMA, dtype=dtype, mirrors=mirrors)
    write(tmp_path, schema)
    found = read(tmp_path, "validation")
    assert len(found) == 5
    for index, stored in enumerate(found):
        wanted = example(index, schema)
        captions = {"caption_long", "caption_short", "tokens_long", "tokens_short"}
        assert stored.keys() == {"name", "moments", "label", *captions}
        assert isinstance(stored["moments"], np.ndarray) and stored["moments"].dtype == dtype
        np.testing.assert_array_equal(stored["moments"], wanted.moments_Mxhxwx2L.astype(dtype))
        assert stored["label"] == wanted.label
        assert stored["name"] == wanted.name.encode()
        for kind, text, tokens in zip(schema.captions, wanted.captions, wanted.tokens, strict=True):
            assert stored[f"caption_{kind}"] == text.encode()
            found = stored[f"tokens_{kind}"]
            assert isinstance(found, np.ndarray) and found.dtype == np.float16
            np.testing.assert_array_equal(found, tokens)
    info = tfds.builder_from_directory(dataset_folder(tmp_path)).info
    assert info.splits["validation"].shard_lengths == [3, 0, 2]
    assert info.features["label"].names == ["cat", "dog"]


def test_without_labels_and_captions(tmp_path: Path) -> None:
    schema = dataclasses.replace(SCHEMA, classes=(), captions=(), text={})
    write(tmp_path, schema)
    assert read(tmp_path, "validation")[0].keys() == {"name", "moments"}


def test_same_examples_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, SCHEMA)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 1 + 3 + 3  # the folder; files of records; info, features, label names
    for path in files[1:]:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    text = (dataset_folder(tmp_path / "one") / "dataset_info.json").read_text()
    assert str(tmp_path) not in text and json.loads(text)["fileFormat"] == "array_record"


@pytest.mark.parametrize(
    ("dtype", "scale", "message"),
    [
        ("float32", np.inf, "moments of é/0.png are not finite; check the weights of the VAE"),
        ("float16", np.nan, "not finite"),
        ("float16", 1e6, r"é/0.png reach \d.*e\+06, more than float16 can hold; set dtype to flo"),
    ],
)
def test_refuses_numbers_it_cannot_store(
    tmp_path: Path, dtype: str, scale: float, message: str
) -> None:
    schema = dataclasses.replace(SCHEMA, dtype=dtype)
    path = record_file(tmp_path, schema, 0, 1)
    with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
        write_records(path, schema, [example(0, schema, scale)])
    assert list(path.parent.iterdir()) == []
    write_records(path, dataclasses.replace(schema, dtype="float32"), [example(0, schema, 1e3)])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            7e4,
            "of the short caption of é/0.png reach 7e.04, more than float16 can hold; set text.d",
        ),
        (np.inf, "of the short caption of é/0.png are not finite; check .* the text encoder"),
    ],
)
def test_refuses_features_it_cannot_store(tmp_path: Path, value: float, message: str) -> None:
    path, given = record_file(tmp_path, SCHEMA, 0, 1), example(0)
    loud = dataclasses.replace(given, tokens=[given.tokens[0], np.full((1, 3), value)])
    with pytest.raises(ValueError, match=message):
        write_records(path, SCHEMA, [loud])
    wider = dataclasses.replace(SCHEMA, text=SCHEMA.text | {"dtype": "bfloat16"})
    if np.isfinite(value):
        write_records(path, wider, [loud])


def test_a_failing_image_leaves_no_file(tmp_path: Path) -> None:
    def stops() -> Iterator[LatentExample]:
        yield example(0)
        raise RuntimeError("out of device memory")

    path = record_file(tmp_path, SCHEMA, 0, 1)
    with pytest.raises(RuntimeError, match="^out of device memory$"):
        write_records(path, SCHEMA, stops())
    assert list(path.parent.iterdir()) == []


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it."""
    path = record_file(tmp_path, SCHEMA, 0, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="could not be written: .*File too large"):
            write_records(path, SCHEMA, (example(index) for index in range(500)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(path.parent.iterdir()) == []


def test_estimate(tmp_path: Path) -> None:
    counts = (100, 100)
    write(tmp_path, SCHEMA, counts)
    real = sum(path.stat().st_size for path in dataset_folder(tmp_path).glob("*.array_record*"))
    assert 0.8 * real < estimated_bytes(SCHEMA, 200, 2) < 1.6 * real


def test_leftovers(tmp_path: Path) -> None:
    write(tmp_path, SCHEMA)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / ".schema.json.123.tmp").touch()
    (dataset_folder(tmp_path) / ".latents-train.array_record-00000-of-00002.9.tmp").touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
