"""Images of a prepared TFDS data set, read without TensorFlow and without the code that made it."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow_datasets.proto import tf_example_pb2

from lit_jax.config import SourceConfig, unknown_name
from lit_jax.data.open_files import allow_open_files
from lit_jax.data.sources.image_source import BrokenImage, ImageSource, decode_text, require_text

INFO, FEATURES = "dataset_info.json", "features.json"
IMAGE, LABEL, FILE_NAME = "image", "label", "file_name"


_LAST = threading.local()  # outside of the sources, which worker processes receive pickled
_KEYS = itertools.count()


class TfdsImages(ImageSource):
    """A split of a TFDS data set with a feature "image". A feature "label" of kind ClassLabel gives
    labels, "file_name" the names; without it an image is called `split/000123`. Captions are
    features of kind Text."""

    def __init__(self, config: SourceConfig) -> None:
        """Raise ValueError when the data set is not prepared, has no such split, no images or no
        such captions, or is not stored as ArrayRecord."""
        folder = prepared_folder(Path(config.path).expanduser(), config.name)
        builder = tfds.builder_from_directory(str(folder))
        if config.split not in builder.info.splits:
            raise unknown_name(f"split of {folder}", config.split, builder.info.splits)
        features = dict(builder.info.features.items())
        if not isinstance(features.get(IMAGE), tfds.features.Image):
            raise ValueError(
                f"{folder} has no feature {IMAGE!r} with encoded images; it has"
                f" {', '.join(sorted(features))}"
            )
        self._captions, self.captions = config.captions, config.caption_kinds
        known = [key for key, value in features.items() if isinstance(value, tfds.features.Text)]
        for name in config.captions:
            if name not in known:
                raise unknown_name(f"text feature of {folder}", name, known)
        formats = {form.value for form in builder.info.available_file_formats()}
        if "array_record" not in formats:
            raise ValueError(
                f"{folder} is stored as {', '.join(sorted(formats))}, which only TensorFlow reads;"
                f" convert it once: tfds convert_format --dataset_version_dir={folder}"
                " --out_file_format=array_record --out_dir=OTHER_FOLDER, and set"
                " source.path=OTHER_FOLDER and source.name=''"
            )
        # The data set may be stored in a second format beside this one.
        stored = tfds.builder_from_directory(str(folder), file_format="array_record").info
        split = stored.splits[config.split]
        self._split, self._key = config.split, next(_KEYS)
        self._files = sorted(zip(split.filepaths, split.shard_lengths, strict=True))
        shape = features[IMAGE].shape
        self.image_shape = None if None in shape else tuple(shape)
        self._named = isinstance(features.get(FILE_NAME), tfds.features.Text)
        if isinstance(features.get(LABEL), tfds.features.ClassLabel):
            self.classes = tuple(features[LABEL].names)
        allow_open_files(len(self._files))
        self._records = ArrayRecordDataSource(split.file_instructions)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        if not self._named:
            return f"{self._split}/{index:06d}"
        name: bytes = self._only(index, FILE_NAME, "bytes_list")
        return name.decode("utf-8", "backslashreplace")

    def encoded(self, index: int) -> bytes:
        encoded: bytes = self._only(index, IMAGE, "bytes_list")
        return encoded

    def label(self, index: int) -> int | None:
        if not self.classes:
            return None
        label = int(self._only(index, LABEL, "int64_list"))
        if not 0 <= label < len(self.classes):
            raise BrokenImage(f"label {label} is not in 0..{len(self.classes) - 1}")
        return label

    def texts(self, index: int) -> tuple[str, ...]:
        return require_text(
            [decode_text(self._only(index, name, "bytes_list")) for name in self._captions]
        )

    def listing_sha256(self) -> str:
        digest = hashlib.sha256()
        for path, length in self._files:
            file = Path(path)
            digest.update(f"{file.name}\0{length}\0{file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _only(self, index: int, feature: str, kind: str) -> Any:
        """Return the value of a feature that has one."""
        values = getattr(self._record(index)[feature], kind).value
        if len(values) != 1:
            raise BrokenImage(f"the record has {len(values)} values of {feature!r}, not one")
        return values[0]

    def _record(self, index: int) -> Mapping[str, Any]:
        """Return the features of record `index`, as they are stored. The last record of a thread
        is kept, since its name, label and image are needed one after the other."""
        if getattr(_LAST, "key", None) != (self._key, index):
            try:
                record = tf_example_pb2.Example.FromString(self._records[index])
            except (DecodeError, RuntimeError) as error:
                # ArrayRecord raises RuntimeError for everything; only a damaged record is an error
                # of this image.
                if isinstance(error, RuntimeError) and "Corrupted" not in str(error):
                    raise
                raise BrokenImage("the record is damaged") from error
            _LAST.features, _LAST.key = record.features.feature, (self._key, index)
        features: Mapping[str, Any] = _LAST.features
        return features


def holds_images(folder: Path) -> bool:
    """Return True for the folder of a prepared TFDS data set that has a feature "image"."""
    found = [path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}{FEATURES}")]
    return any(IMAGE in json.loads(path.read_text())["featuresDict"]["features"] for path in found)


def prepared_folder(data_dir: Path, name: str) -> Path:
    """Return the folder of data set `name` under `data_dir`, newest version. `name` may end in
    "/config" and "/version"; it is empty when `data_dir` is that folder.

    Raises ValueError, listing the existing folders, when the data set is not prepared.
    """
    folder = data_dir / name
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; prepare the data set there first: tfds build {name or 'NAME'}"
            f" --data_dir={data_dir} --file_format=array_record"
        )
    if (folder / INFO).is_file():
        return folder
    inside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    versions = [text for text in inside if (folder / text / INFO).is_file()]
    if not versions:
        found = f"; it holds {', '.join(inside[:5])}" if inside else ""
        raise ValueError(
            f"{folder} holds no prepared data set (no {INFO}){found}; set source.name to"
            " NAME, NAME/CONFIG or NAME/CONFIG/VERSION"
        )
    return folder / max(versions, key=lambda text: tfds.core.Version(text).tuple)
