"""Folders of images: order, labels, captions, and what is refused or reported."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_jax.config import SourceConfig
from lit_jax.data.registry import open_source
from lit_jax.data.sources.image_source import BrokenImage, ImageSource


def bitmap(grey: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    """An image file whose length does not depend on the pixels."""
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, "BMP")
    return file.getvalue()


def fill(root: Path, *paths: str) -> Path:
    """Images under these names; the grey of each is its place in the list."""
    for grey, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bitmap(grey))
    return root


def names(source: ImageSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def classes_of(root: Path) -> ImageSource:
    return open_source(SourceConfig(kind="class_folders", path=str(root)))


def images_of(root: Path, *captions: str) -> ImageSource:
    return open_source(SourceConfig(kind="folder", path=str(root), captions=captions))


def test_classes_and_order(tmp_path: Path) -> None:
    """By class, then by path, whatever the order on disk; "n1 x" must not part the images of n1."""
    fill(tmp_path, "n2/a.png", "n1/z.JPEG", "n1 x/b.png", "n1/deep/er.jpg", "n1/B.png", "n10/c.PNG")
    source = classes_of(tmp_path)
    assert source.classes == ("n1", "n1 x", "n10", "n2")
    expected = ["n1/B.png", "n1/deep/er.jpg", "n1/z.JPEG", "n1 x/b.png", "n10/c.PNG", "n2/a.png"]
    assert names(source) == expected
    assert [source.label(index) for index in range(len(source))] == [0, 0, 0, 1, 2, 3]
    assert source.texts(0) == () and not source.captions
    greys = [np.asarray(source.load(index))[0, 0, 0] for index in range(len(source))]
    assert greys == [4, 3, 1, 2, 5, 0]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.png", "a/.hidden.png", ".git/y.png", "a/.thumbs/z.png", "a/notes.csv")
    assert names(classes_of(tmp_path)) == ["a/x.png"]
    assert names(images_of(tmp_path)) == ["a/x.png"]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", "one.png", "more/two.png")
    root = fill(tmp_path / "root", "a/x.png")
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "link.png").symlink_to(elsewhere / "one.png")
    (root / "a" / "up").symlink_to(root)
    source = classes_of(root)
    assert names(source) == ["a/link.png", "a/x.png", "b/more/two.png", "b/one.png"]
    assert source.classes == ("a", "b")


def test_broken_links_and_strange_files_are_reported(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.png")
    (root / "b.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "c.png")
    (root / "d.png").write_bytes(b"")
    source = images_of(root)
    assert names(source) == ["a.png", "b.png", "c.png", "d.png"]
    for index, reason in enumerate(("No such file", "not a regular file", "is empty"), start=1):
        with pytest.raises(BrokenImage, match=reason):
            source.load(index)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xe9\n.png"
    with open(path, "wb") as file:
        file.write(bitmap())
    source = images_of(tmp_path)
    assert names(source) == [r"\xff\xe9\n.png"]
    assert source.load(0).size == (4, 4)
    source.listing_sha256()


def test_captions(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png", "sub/e.jpg")
    (tmp_path / "a.txt").write_text("  a cat, ein Kätzchen\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    (tmp_path / "sub/e.txt").write_text("a dog\non two lines")
    source = images_of(tmp_path, "txt")
    assert source.captions == ("txt",) and source.classes == () and source.label(0) is None
    assert source.texts(0) == ("a cat, ein Kätzchen",)
    assert source.texts(4) == ("a dog\non two lines",)
    for index, reason in (
        (1, "the caption is empty"),
        (2, "no caption: there is no c.txt"),
        (3, r"the caption is not UTF-8 \(byte 3\)"),
    ):
        with pytest.raises(BrokenImage, match=reason):
            source.texts(index)
    assert images_of(tmp_path).texts(2) == ()


def test_captions_of_other_editors(tmp_path: Path) -> None:
    """A byte-order mark is no part of a caption; UTF-16 is no text; suffixes in any case."""
    fill(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat")
    (tmp_path / "b.TXT").write_text("a dog")
    (tmp_path / "c.txt").write_bytes("a cow".encode("utf-16-le"))
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbf")
    source = images_of(tmp_path, "txt")
    assert (source.texts(0), source.texts(1)) == (("a cat",), ("a dog",))
    for index, reason in ((2, "it holds zero bytes"), (3, "the caption is empty")):
        with pytest.raises(BrokenImage, match=reason):
            source.texts(index)


def test_trouble_of_the_machine_is_not_the_fault_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that fails once must not cost an image for ever."""
    source = images_of(fill(tmp_path, "a.png"))

    def stale(*arguments: object, **named: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("builtins.open", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        source.load(0)


def test_only_formats_of_photographs_are_opened(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for the first of these."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EOF\n")
    with pytest.raises(BrokenImage, match="not an image, or of an unknown format"):
        images_of(tmp_path).load(0)


def test_listing_hash_notices_names_sizes_and_captions(tmp_path: Path) -> None:
    fill(tmp_path / "one", "a.png", "b.png")
    first = images_of(tmp_path / "one").listing_sha256()
    fill(tmp_path / "two", "b.png", "a.png")  # written the other way round, other pixels
    assert images_of(tmp_path / "two").listing_sha256() == first  # not the pixels, as documented
    (tmp_path / "two/a.txt").write_text("cat")
    assert images_of(tmp_path / "two").listing_sha256() == first
    with_caption = images_of(tmp_path / "two", "txt").listing_sha256()
    assert with_caption != first
    (tmp_path / "two/a.txt").write_text("lion")
    assert images_of(tmp_path / "two", "txt").listing_sha256() != with_caption
    (tmp_path / "two/a.png").write_bytes(bitmap(0, (9, 4)))
    changed = images_of(tmp_path / "two").listing_sha256()
    assert changed != first
    (tmp_path / "two/a.png").rename(tmp_path / "two/c.png")
    assert images_of(tmp_path / "two").listing_sha256() not in (first, changed)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source.path .*nowhere is missing"):
        images_of(tmp_path / "nowhere")
    (tmp_path / "file.png").write_bytes(bitmap())
    with pytest.raises(ValueError, match="file.png is no folder"):
        classes_of(tmp_path / "file.png")
    with pytest.raises(ValueError, match="1 images lie directly in .*, e.g. file.png"):
        classes_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images \(.bmp, "):
        images_of(tmp_path / "empty")
    fill(tmp_path / "c", "a/x.png", "b/x.txt", "d/.x.png")
    with pytest.raises(ValueError, match="2 of 3 class folders in .* hold no images: b, d;"):
        classes_of(tmp_path / "c")
    fill(tmp_path / "odd", "a /x.png", "b/x.png")
    with pytest.raises(ValueError, match="class folder 'a ' .* white space"):
        classes_of(tmp_path / "odd")
    with pytest.raises(ValueError, match="unknown source.kind 'folders'; did you mean 'folder'"):
        open_source(SourceConfig(kind="folders", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "source.path is empty"),
        ({"split": "train[:1%]"}, r"source.split is 'train\[:1%\]'; it must be the name"),
        ({"split": ""}, "source.split is ''"),
        (
            {"kind": "class_folders", "captions": ("txt",)},
            r"source.captions \('txt',\) belong to source.kind 'folder' or 'tfds', not to 'class_f",
        ),
        ({"captions": ("a/b.txt",)}, "source.captions holds 'a/b.txt'; it must be made of letters"),
        ({"captions": ("",)}, "source.captions holds ''"),
        ({"captions": ("long.txt", "long")}, "names a kind of captions twice"),
        ({"name": "imagenet2012"}, "source.name 'imagenet2012' belongs to source.kind 'tfds'"),
    ],
)
def test_config_is_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig(**({"kind": "folder", "path": "x"} | fields))  # type: ignore[arg-type]
