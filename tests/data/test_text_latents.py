"""Captions and buckets as training data: which caption, which size, any number of hosts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.data import pipeline
from lit_jax.data.latents.schema import (
    BUCKETS,
    NULL_CAPTION,
    read_null_caption,
    read_schema,
    write_array,
)
from lit_jax.data.stream import BatchStream
from support import latent_cases
from support.latent_cases import NAME

KINDS = ("long", "short")
SIZES = ((8, 8), (4, 16), (16, 4))
COUNT = latent_cases.COUNT
Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return latent_cases.save_vae(tmp_path_factory.mktemp("vae") / "tiny")


def write(folder: Path, vae: Path, **fields: Any) -> Path:
    """Latents with two kinds of captions, without mirrors and classes."""
    fields = {"captions": KINDS, "text": True, "mirrors": False, "classes": ()} | fields
    return latent_cases.write_latents(folder, vae, **fields)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    path = tmp_path_factory.mktemp("squares")
    write(path / NAME, vae)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """Image k has size k mod 3: 8, 8 and 7 of them."""
    path = tmp_path_factory.mktemp("mixed")
    write(path / NAME, vae, sizes=SIZES)
    return path


def stream(data_dir: Path, batch_size: int = COUNT, seed: int = 3, **options: Any) -> BatchStream:
    return pipeline.make_train_iterator(NAME, data_dir, "train", batch_size, seed, **options)


def take(batches: BatchStream, count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def images_of(batch: Batch) -> list[int]:
    numbers: list[int] = batch["moments"][:, 0, 0, 0].astype(int).tolist()
    return numbers


def kinds_of(batch: Batch) -> list[int]:
    """The number of the kind of captions of every row."""
    kinds: list[int] = (batch["tokens"][:, 0, 0].astype(int) // 100).tolist()
    return kinds


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# --- captions ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_batch_holds_what_was_stored(tmp_path: Path, vae: Path, dtype: str) -> None:
    write(tmp_path / NAME, vae, text_dtype=dtype)
    batches = stream(tmp_path)
    assert batches.shapes == (batches.arrays,)
    assert batches.arrays == {
        "moments": ((COUNT, 4, 4, 8), np.dtype(np.float32)),
        "tokens": ((COUNT, 5, 6), np.dtype(dtype)),
        "mask": ((COUNT, 5), np.dtype(np.int8)),
    }
    batch = next(batches)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == batches.arrays
    assert sorted(images_of(batch)) == list(range(COUNT))
    for row, (image, kind) in enumerate(zip(images_of(batch), kinds_of(batch), strict=True)):
        wanted = latent_cases.tokens(image, kind).astype(dtype)
        assert batch["mask"][row].tolist() == [1] * len(wanted) + [0] * (5 - len(wanted))
        np.testing.assert_array_equal(batch["tokens"][row, : len(wanted)], wanted)
        assert not batch["tokens"][row, len(wanted) :].any()


@pytest.mark.parametrize(
    ("weights", "share"), [({}, 0.5), ({"long": 0.6, "short": 0.4}, 0.4), ({"short": 3.0}, 1.0)]
)
def test_mixture_of_captions(squares: Path, weights: dict[str, float], share: float) -> None:
    """Of image 3 only the short caption is there, of image 4 the long one."""
    batches = take(stream(squares, caption_weights=weights), 60)
    shorts = Counter[int]()
    for batch in batches:
        for image, kind in zip(images_of(batch), kinds_of(batch), strict=True):
            shorts[image] += kind
    assert shorts[3] == 60 and shorts[4] == 0
    rest = [shorts[image] / 60 for image in range(COUNT) if image not in (3, 4)]
    assert abs(np.mean(rest) - share) < 5 * np.sqrt(share * (1 - share) / (60 * len(rest))) + 1e-9
    if 0 < share < 1:  # not one caption for ever
        assert all(0 < value < 1 for value in rest)


def test_choice_of_captions_depends_on_seed_and_position_only(squares: Path) -> None:
    first, again, other = (
        [kinds_of(batch) for batch in take(stream(squares, seed=seed), 3)] for seed in (3, 3, 4)
    )
    assert first == again != other
    assert len({tuple(kinds) for kinds in first}) == 3
    # Weights change the captions, not the order of the images.
    plain, weighted = stream(squares), stream(squares, caption_weights={"long": 1.0})
    assert images_of(next(plain)) == images_of(next(weighted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_weights": {"medium": 1.0}}, "unknown kind of captions in .* 'medium'.*known: l"),
        ({"caption_weights": {"long": -1.0}}, "caption_weights gives 'long' -1.0; it must be at l"),
        ({"caption_weights": {"long": np.nan}}, "caption_weights gives 'long' nan"),
        ({"caption_weights": {"long": 0.0}}, "caption_weights are all 0: {'long': 0.0}"),
        ({"flip": True}, "data.flip is True, but the captions in .* would not fit mirror images"),
    ],
)
def test_refusals(squares: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(squares, **options)


def test_weights_without_captions(tmp_path: Path, vae: Path, data_dir: str) -> None:
    latent_cases.write_latents(tmp_path / NAME, vae, captions=("txt",))
    with pytest.raises(ValueError, match="holds no features of captions; encode it with text"):
        stream(tmp_path, caption_weights={"txt": 1.0})
    with pytest.raises(ValueError, match="caption_weights are given, but digits has no captions"):
        pipeline.make_train_iterator("digits", data_dir, "train", 4, 0, caption_weights={"a": 1})


def test_captions_may_be_left_out(squares: Path) -> None:
    batches = stream(squares, captions=False)
    assert set(next(batches)) == set(batches.arrays) == {"moments"}


def test_empty_caption(squares: Path, tmp_path: Path, vae: Path) -> None:
    schema = read_schema(squares / NAME)
    null = read_null_caption(squares / NAME, schema)
    np.testing.assert_array_equal(null, latent_cases.null_caption())
    folder = write(tmp_path / "other", vae)
    write_array(folder / NULL_CAPTION, null[:4])
    with pytest.raises(ValueError, match=r"float32 \(4, 6\), the schema requires float32 \(5, 6\)"):
        read_null_caption(folder, schema)
    write_array(folder / NULL_CAPTION, null.astype(np.float64))
    with pytest.raises(ValueError, match=r"is float64 \(5, 6\), the schema requires float32"):
        read_null_caption(folder, schema)
    (folder / NULL_CAPTION).write_bytes(b"x")
    with pytest.raises(ValueError, match="null_caption.npy cannot be read"):
        read_null_caption(folder, schema)
    plain = latent_cases.write_latents(tmp_path / "plain", vae)
    with pytest.raises(ValueError, match="plain holds no features of captions"):
        read_null_caption(plain, read_schema(plain))


def test_schema_of_version_1_is_read(tmp_path: Path, vae: Path) -> None:
    folder = latent_cases.write_latents(tmp_path / NAME, vae)
    expected = next(stream(tmp_path, flip=True))
    path = folder / "schema.json"
    content = json.loads(path.read_text()) | {"version": 1, "captions": False}
    del content["text"], content["buckets"]
    path.write_text(json.dumps(content))
    assert_equal([next(stream(tmp_path, flip=True))], [expected])


# --- buckets ---


def test_batches_hold_one_size(mixed: Path) -> None:
    batches = stream(mixed, 4)
    assert [arrays["moments"][0] for arrays in batches.shapes] == [
        (4, 4, 4, 8),
        (4, 2, 8, 8),
        (4, 8, 2, 8),
    ]
    assert batches.arrays == batches.shapes[0]
    sizes = set()
    for batch in take(batches, 30):
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} in batches.shapes
        buckets = {image % 3 for image in images_of(batch)}
        assert len(buckets) == 1
        sizes |= buckets
        for row, image in enumerate(images_of(batch)):
            shape = batch["moments"].shape[1:3]
            wanted = latent_cases.moments(image, mirrors=False, shape=(*shape, 4))[0]
            np.testing.assert_array_equal(batch["moments"][row], wanted)
    assert sizes == {0, 1, 2}


def test_every_image_is_seen_at_the_same_rate(mixed: Path) -> None:
    """Also when buckets are smaller than a batch: 23 images in buckets of 8, 8 and 7, batches of
    16, 300 of them."""
    seen = Counter(image for batch in take(stream(mixed, 16), 300) for image in images_of(batch))
    assert len(seen) == COUNT
    rate = 16 * 300 / COUNT
    # Rows of one batch come together, so that batches vary, not rows: per bucket, 5 sigma of
    # 300 draws with probability 1/3.
    assert all(abs(count - rate) < 5 * np.sqrt(300 * 2 / 9) * 16 / 7 for count in seen.values())
    # Within a bucket, images come equally often but for the last, unfinished epoch.
    for bucket in range(3):
        counts = [seen[image] for image in range(COUNT) if image % 3 == bucket]
        assert max(counts) - min(counts) <= 1


def test_resume_hosts_and_worker_processes(mixed: Path) -> None:
    weights = {"long": 0.6, "short": 0.4}
    whole = stream(mixed, 8, caption_weights=weights)
    expected = take(whole, 20)[7:]
    hosts = [
        stream(mixed, 8, caption_weights=weights, shard_index=h, shard_count=2, workers=h)
        for h in range(2)
    ]
    for host in hosts:
        host.seek(7)
    together = []
    for _ in expected:
        parts = [next(host) for host in hosts]
        together.append({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
    for host in hosts:
        assert host.position == 20
        host.close()
    assert_equal(together, expected)


def test_sizes_without_images_are_no_shapes(tmp_path: Path, vae: Path) -> None:
    write(tmp_path / NAME, vae, counts=(2,), sizes=SIZES)  # two images: the first two sizes
    batches = stream(tmp_path, 2)
    assert len(batches.shapes) == 2
    assert {batch["moments"].shape for batch in take(batches, 20)} == {(2, 4, 4, 8), (2, 2, 8, 8)}


def test_damaged_buckets(tmp_path: Path, vae: Path) -> None:
    folder = write(tmp_path / NAME, vae, sizes=SIZES)
    numbers = np.load(folder / BUCKETS)
    for wrong in (numbers[:-1], numbers + 1):
        write_array(folder / BUCKETS, wrong)
        with pytest.raises(ValueError, match="an index below 3 for each of 23 examples"):
            stream(tmp_path)
    write_array(folder / BUCKETS, np.zeros_like(numbers))
    with pytest.raises(ValueError, match=r"shape \(1, \d, \d, 8\) instead of \(1, 4, 4, 8\)"):
        next(stream(tmp_path, 20))
    (folder / BUCKETS).unlink()
    with pytest.raises(ValueError, match="buckets.npy cannot be read"):
        stream(tmp_path)
