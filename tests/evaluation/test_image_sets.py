"""Sets of images: the same pixels from every kind of file, and bad files named."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_jax.config import SourceConfig
from lit_jax.data.crop import center_crop
from lit_jax.data.sources.folders import ImageFolder
from lit_jax.evaluation.image_sets import (
    ArrayImages,
    CroppedImages,
    FolderImages,
    ImageSet,
    check_levels,
)
from lit_jax.evaluation.npz_images import NpzImages, readable
from lit_jax.storage import files
from support.evaluation_cases import pictures, save_pngs

IMAGES = pictures(9)


def _open(kind: str, tmp_path: Path) -> ImageSet:
    if kind == "array":
        return ArrayImages("made up", IMAGES)
    if kind == "folder":
        return FolderImages(save_pngs(tmp_path / "pngs", IMAGES))
    path = tmp_path / f"{kind}.npz"
    save = np.savez_compressed if kind == "compressed" else np.savez
    # Another array before and a long name: the place of the bytes is not always the same.
    save(path, **{"a_very_long_name" * 9: np.arange(1000), "arr_0": IMAGES, "labels": np.arange(9)})
    return NpzImages(path)


@pytest.mark.parametrize("kind", ["array", "folder", "stored", "compressed"])
def test_every_kind_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    images = _open(kind, tmp_path)
    assert (images.count, images.size, images.channels, images.lossy) == (9, (24, 24), 3, 0)
    # Backwards, too: a compressed file is then read again from its start.
    for first, last in ((0, 4), (4, 9), (7, 8), (2, 3), (0, 9)):
        found = images.read(first, last)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, IMAGES[first:last])
    assert len(images.fingerprint()) == 64


def test_large_npz_with_64_bit_header(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array(file, IMAGES)
    np.testing.assert_array_equal(NpzImages(tmp_path / "a.npz").read(3, 6), IMAGES[3:6])


def test_a_stored_npz_is_not_read_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=IMAGES)
    assert isinstance(NpzImages(tmp_path / "a.npz")._map, np.memmap)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    """A copy has the same, one changed pixel another, whatever the sizes of the files are."""
    changed = IMAGES.copy()
    changed[5, 3, 3, 0] ^= 1
    for save in (save_pngs, lambda path, images: np.savez(path, arr_0=images)):
        kind = FolderImages if save is save_pngs else NpzImages
        found = []
        for name, images in (("a", IMAGES), ("b", IMAGES), ("c", changed)):
            path = tmp_path / (name if kind is FolderImages else f"{name}.npz")
            save(path, images)
            found.append(kind(path).fingerprint())
        assert found[0] == found[1] != found[2]


def test_grey_images_get_three_channels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=IMAGES[..., :1])
    images = NpzImages(tmp_path / "a.npz")
    assert images.channels == 1
    np.testing.assert_array_equal(images.read(0, 2), np.repeat(IMAGES[:2, ..., :1], 3, axis=-1))
    folder = tmp_path / "grey"
    folder.mkdir()
    Image.fromarray(IMAGES[0, ..., 0]).save(folder / "0.png")
    assert FolderImages(folder).read(0, 1).shape == (1, 24, 24, 3)


def test_folders_are_read_by_path_and_lossy_files_counted(tmp_path: Path) -> None:
    save_pngs(tmp_path / "x" / "b", IMAGES[:2])
    save_pngs(tmp_path / "x" / "a", IMAGES[2:4])
    Image.fromarray(IMAGES[4]).save(tmp_path / "x" / "c.JPG", quality=95)
    (tmp_path / "x" / ".hidden.png").write_bytes(b"")
    (tmp_path / "x" / "notes.txt").write_text("no image")
    images = FolderImages(tmp_path / "x")
    assert (images.count, images.lossy) == (5, 1)
    np.testing.assert_array_equal(images.read(0, 4), IMAGES[[2, 3, 0, 1]])
    assert images.where(0).endswith("x/a/000000.png")


def test_photographs_are_cropped_as_for_training(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, (height, width) in enumerate([(60, 90), (33, 30), (200, 70)]):
        Image.fromarray(pictures(1, index, 200)[0, :height, :width]).save(folder / f"{index}.png")
    source = ImageFolder(SourceConfig(kind="folder", path=str(folder)))
    images = CroppedImages("photos", source, 16)
    assert (images.count, images.size) == (3, (16, 16))
    for index in range(3):
        with Image.open(folder / f"{index}.png") as image:
            np.testing.assert_array_equal(images.read(index, index + 1)[0], center_crop(image, 16))
    (folder / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="1.png of photos cannot be used: .*repair or remove it"):
        images.read(0, 3)


# --- what is refused ---


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES.astype(np.float32) / 255, "arr_0 of .* is float32, not uint8; store grey levels"),
        (IMAGES.transpose(0, 3, 1, 2), r"shape \(9, 3, 24, 24\); \[N, H, W, 3\] is needed"),
        (IMAGES[0], r"shape \(24, 24, 3\)"),
        (IMAGES[:0], r"shape \(0, 24, 24, 3\)"),
        (np.asfortranarray(IMAGES), "is in Fortran order"),
    ],
    ids=["float", "channels first", "one image", "none", "fortran"],
)
def test_refused_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(ValueError, match=message):
        NpzImages(tmp_path / "a.npz")


def test_refused_npz_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.npz does not exist"):
        NpzImages(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="text.npz is no npz file, or cut short"):
        NpzImages(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", images=IMAGES)
    with pytest.raises(ValueError, match=r"has no arr_0; it holds \['images'\]"):
        NpzImages(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", arr_0=np.array([{}, 1], object))
    with pytest.raises(ValueError, match="is object, not uint8"):
        NpzImages(tmp_path / "objects.npz")


def test_damaged_stored_npz(tmp_path: Path) -> None:
    """One flipped bit is noticed where the whole file is read."""
    path = tmp_path / "a.npz"
    np.savez(path, labels=np.arange(9), arr_0=IMAGES)
    assert NpzImages(path).fingerprint() == files.sha256_file(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.npz is damaged: its checksum is wrong"):
        NpzImages(path).fingerprint()


@pytest.mark.parametrize("error", [zlib.error, zipfile.BadZipFile, EOFError, OSError, ValueError])
def test_whatever_a_damaged_npz_raises_names_the_file(error: type[Exception]) -> None:
    with (
        pytest.raises(ValueError, match="a.npz is damaged: oh; copy"),
        readable(Path("a.npz")),
    ):
        raise error("oh")


def test_folders_are_listed_as_for_training(tmp_path: Path) -> None:
    """With and without a crop: hidden folders left out, all suffixes, a link in a circle."""
    folder = save_pngs(tmp_path / "x", IMAGES[:2])
    save_pngs(folder / ".hidden", IMAGES[:2])
    Image.fromarray(IMAGES[2]).save(folder / "3.tiff")
    (folder / "again").symlink_to(folder)
    source = ImageFolder(SourceConfig(kind="folder", path=str(folder)))
    images = FolderImages(folder)
    assert images.count == len(source) == 3 and images.lossy == 0
    np.testing.assert_array_equal(images.read(0, 3), IMAGES[:3])


def test_damaged_compressed_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=IMAGES)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.npz is damaged"):
        NpzImages(path).read(0, 9)


def test_mixed_sizes_name_the_file(tmp_path: Path) -> None:
    folder = save_pngs(tmp_path / "x", IMAGES)
    Image.fromarray(IMAGES[0, :20]).save(folder / "000004.png")
    with pytest.raises(ValueError, match="000004.png has 20 x 24 pixels.*000000.png 24 x 24"):
        FolderImages(folder).read(0, 9)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "CMYK"])
def test_modes_without_one_meaning_name_the_file(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (24, 24))
    name = "000000.jpg" if mode == "CMYK" else "000000.png"
    picture.save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is of mode {mode}; 8-bit RGB or grey"):
        FolderImages(tmp_path)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = save_pngs(tmp_path / "x", IMAGES)
    whole = (folder / "000003.png").read_bytes()
    (folder / "000003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="000003.png cannot be read"):
        FolderImages(folder).read(0, 9)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        FolderImages(tmp_path)


def test_images_scaled_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="9 images from all over dark hold grey levels 0 and 1"):
        check_levels(ArrayImages("dark", IMAGES // 255))
    assert check_levels(ArrayImages("fine", IMAGES)) == []
    (warning,) = check_levels(ArrayImages("black", np.zeros_like(IMAGES)))
    assert "black: 9 images from all over the set are black" in warning
    # A set may begin with a hundred dark images.
    late = np.zeros((200, 8, 8, 3), np.uint8)
    late[0] = 1
    late[100:] = 200
    assert check_levels(ArrayImages("late", late)) == []
