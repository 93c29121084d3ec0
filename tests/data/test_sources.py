"""Decoding, and images of prepared TFDS data sets."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lit_jax.config import SourceConfig
from lit_jax.data.registry import open_source
from lit_jax.data.sources.image_source import BrokenImage, decode_rgb, reason

ROOT = Path(__file__).resolve().parents[2]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(image: bytes) -> np.ndarray:
    decoded = decode_rgb(image)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


# --- decoding ---


def test_modes() -> None:
    """As `convert("RGB")` of Pillow, which is what torchvision's ImageFolder does."""
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    expected = np.stack([grey] * 3, -1)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey))), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(grey).convert("P"))), expected)
    # Transparency is dropped, not blended with a background.
    clear = Image.merge("RGBA", [Image.fromarray(grey)] * 3 + [Image.new("L", (4, 3), 0)])
    np.testing.assert_array_equal(pixels(encoded(clear)), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.new("1", (2, 2), 1))), 255)
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encoded(cmyk, "JPEG"))[8, 8], (255, 0, 0), atol=6)


def test_sixteen_bits_are_cut_off() -> None:
    deep = Image.fromarray(np.array([[0, 7, 255, 256, 65535]], np.uint16))
    np.testing.assert_array_equal(pixels(encoded(deep))[0, :, 0], [0, 7, 255, 255, 255])
    real = Image.fromarray(np.array([[-3.0, 7.4, 300.0]], np.float32))
    np.testing.assert_array_equal(pixels(encoded(real, "TIFF"))[0, :, 0], [0, 7, 255])


def test_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    wide = Image.new("RGB", (6, 3), (200, 10, 10))
    assert pixels(encoded(wide, "JPEG", exif=exif)).shape == (3, 6, 3)


def test_first_frame_counts() -> None:
    frames = [Image.new("RGB", (3, 3), (shade,) * 3) for shade in (10, 200)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(moving), 10)


def noise(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


BROKEN = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"<html>404 Not Found</html>", "not an image, or of an unknown format"),
    "truncated jpeg": (lambda: encoded(noise((64, 64)), "JPEG")[:2000], "truncated"),
    "truncated png": (lambda: encoded(noise((64, 64)))[:5000], "truncated|unrecognized"),
    "header only": (lambda: encoded(noise((8, 8)))[:20], "not an image|Truncated"),
    "damaged png": (lambda: flipped(encoded(noise((64, 64))), 500), "broken|checksum|CRC|decod"),
}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(255 - byte for byte in data[at : at + 40]) + data[at + 40 :]


@pytest.mark.parametrize("case", BROKEN)
def test_broken_images(case: str) -> None:
    make, reason = BROKEN[case]
    messages = set()
    for _ in range(2):
        with pytest.raises(BrokenImage, match=reason) as error:
            decode_rgb(make())
        messages.add(str(error.value))
    # The message ends up in a file that must be the same in every run.
    assert len(messages) == 1 and "0x" not in messages.pop()


def test_reasons_are_the_same_in_every_run() -> None:
    error = ValueError("bad <_io.BytesIO object at 0x7f4bd8c0f1>\nmore")
    assert reason(error) == "ValueError: bad <_io.BytesIO object>"
    assert reason(OSError(13, "whatever", "/a/path")) == "Permission denied"


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    decode_rgb(encoded(Image.new("RGB", (5, 10))))
    with pytest.raises(BrokenImage, match="DecompressionBombError: Image size .120 pixels."):
        decode_rgb(encoded(Image.new("RGB", (10, 12))))


def test_lack_of_memory_is_not_the_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any, **named: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        decode_rgb(b"x")


# --- TFDS ---


class Named(tfds.core.GeneratorBasedBuilder):
    """As imagenet2012: file names, class names, one example without a label."""

    VERSION = tfds.core.Version("2.0.0")
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "file_name": tfds.features.Text(),
            "short": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "newt"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(5):
            image = io.BytesIO(encoded(Image.new("RGB", (9, 7 + index), (index,) * 3), "PNG"))
            label = index % 3 if index < 4 else -1
            yield (
                index,
                {
                    "file_name": f"n{index}.JPEG",
                    "short": f" the {index}. é\n" if index else "",
                    "image": image,
                    "label": label,
                },
            )


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    Named(data_dir=str(path), file_format="array_record").download_and_prepare()
    return path


def tfds_source(path: str | Path, name: str = "", split: str = "train") -> Any:
    return open_source(SourceConfig(kind="tfds", path=str(path), name=name, split=split))


def test_tfds(named: Path) -> None:
    source = tfds_source(named, "named")
    assert len(source) == 5 and source.classes == ("cat", "dog", "newt") and not source.captions
    found = {}
    for index in range(5):
        image, number = source.load(index), int(source.name(index)[1])
        assert image.size == (9, 7 + number) and image.getpixel((0, 0)) == (number,) * 3
        found[number] = index
        if number < 4:
            assert source.label(index) == number % 3
    assert sorted(found) == [0, 1, 2, 3, 4] and source.texts(0) == ()
    with pytest.raises(BrokenImage, match=r"label -1 is not in 0..2"):
        source.label(found[4])


def test_captions_of_tfds(named: Path) -> None:
    config = SourceConfig(
        kind="tfds", path=str(named), name="named", captions=("file_name", "short")
    )
    both = open_source(config)
    short = open_source(dataclasses.replace(config, captions=("short",)))
    assert both.captions == ("file_name", "short")
    for index in range(5):
        number = int(both.name(index)[1])
        text = f"the {number}. é" if number else ""
        assert both.texts(index) == (f"n{number}.JPEG", text)
        if number:
            assert short.texts(index) == (text,)
        else:
            with pytest.raises(BrokenImage, match="the caption is empty"):
                short.texts(index)
    for name in ("shrt", "label"):
        with pytest.raises(ValueError, match=f"unknown text feature of .* '{name}'.*known: file_"):
            open_source(dataclasses.replace(config, captions=(name,)))


def test_ways_to_name_a_data_set(named: Path) -> None:
    wanted = tfds_source(named, "named").listing_sha256()
    for path, name in ((named, "named/2.0.0"), (named / "named", ""), (named / "named/2.0.0", "")):
        assert tfds_source(path, name).listing_sha256() == wanted
    assert tfds_source(named, "named", "test").listing_sha256() != wanted


def test_newest_version_is_read(named: Path, tmp_path: Path) -> None:
    for version, split in (("9.0.0", "nine"), ("10.0.0", "ten")):
        folder = tmp_path / "named" / version
        folder.mkdir(parents=True)
        for file in (named / "named/2.0.0").iterdir():
            text = file.read_bytes().replace(b'"2.0.0"', f'"{version}"'.encode())
            if file.suffix == ".json":
                text = text.replace(b'"test"', f'"{split}"'.encode())
            (folder / file.name).write_bytes(text)
    with pytest.raises(ValueError, match="unknown split of .*10.0.0 'tset'.*known: ten, train"):
        tfds_source(tmp_path, "named", "tset")


def test_names_without_a_feature_for_them(data_dir: str) -> None:
    source = tfds_source(data_dir, "digits", "heldout")
    assert source.name(7) == "heldout/000007" and len(source) == 500
    assert source.classes == tuple(map(str, range(10)))
    assert source.load(3).size == (8, 8) and 0 <= source.label(3) < 10


def test_threads_may_share_a_source(named: Path) -> None:
    source = tfds_source(named, "named")

    def look(index: int) -> tuple[str, int]:
        return source.name(index), source.load(index).height

    order = [i % 5 for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, order))
    assert all(height == 7 + int(name[1]) for name, height in found)
    assert found[:5] == found[5:10] and len(set(found)) == 5


def test_tfds_refusals(named: Path, data_dir: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nmed is missing; .* tfds build nmed --data_dir="):
        tfds_source(named, "nmed")
    with pytest.raises(ValueError, match="holds no prepared data set .*named; set source.name"):
        tfds_source(named)
    with pytest.raises(ValueError, match="unknown split of .* 'trian'; did you mean 'train'"):
        tfds_source(named, "named", "trian")
    info = named / "named/2.0.0/dataset_info.json"
    copy = tmp_path / "named/2.0.0"
    copy.mkdir(parents=True)
    for file in info.parent.glob("*.json"):
        (copy / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="stored as tfrecord, .* tfds convert_format --data"):
        tfds_source(tmp_path, "named")
    features = (copy / "features.json").read_text().replace('"image":', '"picture":', 1)
    (copy / "features.json").write_text(features)
    with pytest.raises(ValueError, match="has no feature 'image' .* it has file_name, label, pict"):
        tfds_source(tmp_path, "named")


def test_damaged_records_are_broken_images(named: Path, tmp_path: Path) -> None:
    copy = tmp_path / "named/2.0.0"
    copy.mkdir(parents=True)
    for file in (named / "named/2.0.0").iterdir():
        data = file.read_bytes()
        if "named-train" in file.name:
            data = flipped(data, 65536 + 60)
        (copy / file.name).write_bytes(data)
    source = tfds_source(tmp_path, "named")
    broken = 0
    for index in range(5):
        try:
            source.load(index)
        except BrokenImage:
            broken += 1
    assert broken >= 1


def test_reading_needs_no_tensorflow(named: Path) -> None:
    code = (
        "import sys\n"
        "from lit_jax.config import SourceConfig\n"
        "from lit_jax.data.registry import open_source\n"
        f"source = open_source(SourceConfig(kind='tfds', path={str(named)!r}, name='named'))\n"
        "print(source.name(0), source.load(0).size, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == "False", done.stderr
