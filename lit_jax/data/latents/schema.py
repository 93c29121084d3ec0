"""Schema of a data set of latents: `schema.json` in its folder.

The folder given to `encode --out`, or to `self_generate --out`, holds

    schema.json       written last: a folder with it is complete
    skipped.json      images that could not be used, with the reason (`encode`)
    request.json      the request, so that another one is refused
    null_caption.npy  with text: float32 [max_length, width], the encoding of "" at all positions,
                      padding included
    buckets.npy       with buckets: uint8 [count], index into `buckets` of each example
    1.0.0/            a TFDS data set: dataset_info.json, features.json, *.array_record-*-of-*

An example is {"name": text, "moments": [1 or 2, h, w, 2 L], "label": int64 (with classes)} and, for
every kind K of captions, {"caption_K": text, "tokens_K": [n, width] (with text)}. `moments[0]` is
the image, `moments[1]` its mirror image; along the last axis L posterior means, then L
log-variances, as `AutoencoderKL.encode` returns them: not scaled, not clipped. Examples that a
model has drawn have no log-variance: `moments[0]` [h, w, L] is the sample itself, in the scale of
the input of models. Of the features of a caption only the n valid tokens are stored, </s> included;
an image without a kind of caption has the text "" and n = 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # numpy learns the name bfloat16
import numpy as np

from lit_jax.config import from_mapping, unknown_name
from lit_jax.storage.files import atomic_path, write_json

SCHEMA, SKIPPED, REQUEST = "schema.json", "skipped.json", "request.json"
NULL_CAPTION, BUCKETS = "null_caption.npy", "buckets.npy"
CAPTION, TOKENS = "caption_", "tokens_"
"""Features of an example: these, followed by a kind of captions."""
DATASET_NAME, DATASET_VERSION = "latents", "1.0.0"
SCHEMA_VERSION = 2

GAUSSIAN, DRAWN = "mean, log_variance", "x_start"
LAYOUTS: Mapping[str, int] = {GAUSSIAN: 2, DRAWN: 1}
"""Content of the last axis of "moments" -> numbers per channel."""


@dataclass(frozen=True)
class LatentSchema:
    """The content of `schema.json`.

    `vae` holds the fields of `checkpoints.identity.VaeIdentity`: id, sha256, encoder_sha256,
    scaling_factor, downsampling, latent_channels; it is empty for pixels that a model has drawn.
    `latent_shape` is (h, w, L) of a square image of `resolution` pixels along a side.
    `count` examples are stored, `skipped` images could not be used. `classes` is empty without
    labels, `captions` (their kinds) without captions. `text` is empty without features of captions,
    else {"encoder": the fields of `checkpoints.identity.TextEncoderIdentity`, "max_length",
    "dtype", "width"}. `buckets` are the
    (height, width) in pixels of the examples, empty when all are square. `crop` is "adm", "fill"
    (into buckets, see `data.crop`), or "" for drawn examples. `source` holds kind, path, name and
    split of the images and the sha256 of their listing, or the model that drew them and its
    protocol. `moments` is a row of LAYOUTS.
    """

    vae: Mapping[str, Any]
    dtype: str
    precision: str
    resolution: int
    latent_shape: tuple[int, ...]
    mirrors: bool
    count: int
    skipped: int
    classes: tuple[str, ...]
    captions: tuple[str, ...]
    text: Mapping[str, Any]
    buckets: tuple[tuple[int, int], ...]
    source: Mapping[str, Any]
    crop: str = "adm"
    moments: str = GAUSSIAN
    version: int = SCHEMA_VERSION

    @property
    def split(self) -> str:
        """The only split of the data set."""
        return str(self.source["split"])

    def identity_sha256(self) -> str:
        """Return a hash of everything that the examples depend on. Paths, names of networks and
        the decoder of the VAE are left out; hashes identify images and networks."""
        content = dataclasses.asdict(self)
        content["vae"] = {k: v for k, v in self.vae.items() if k not in ("id", "sha256")}
        content["source"] = {k: v for k, v in self.source.items() if k not in ("path", "name")}
        if self.text:
            encoder = {k: v for k, v in self.text["encoder"].items() if k != "id"}
            content["text"] = {**self.text, "encoder": encoder}
        if self.version == 1:  # runs on older data resume with the hash of that version
            content["captions"] = bool(self.captions)
            del content["text"], content["buckets"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        """(1 or 2, h, w, 2 L or L): the shape of "moments" in an example of a square image."""
        height, width, channels = self.latent_shape
        return 1 + self.mirrors, height, width, LAYOUTS[self.moments] * channels

    @property
    def moments_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """The shape of "moments" in an example, per bucket; one without buckets."""
        if not self.buckets:
            return (self.moments_shape,)
        views, _, _, channels = self.moments_shape
        down = self.vae["downsampling"]
        return tuple((views, h // down, w // down, channels) for h, w in self.buckets)


def dataset_folder(folder: str | Path) -> Path:
    """Return the TFDS data set inside a folder of latents, for `tfds.builder_from_directory`."""
    return Path(folder) / DATASET_VERSION


def is_latent_folder(folder: str | Path) -> bool:
    """Return True if a job that writes latents has finished, or started, in this folder."""
    return any((Path(folder) / name).is_file() for name in (SCHEMA, REQUEST))


def write_schema(folder: str | Path, schema: LatentSchema) -> None:
    """Write `schema.json` atomically, at the end of a job that writes latents."""
    write_json(Path(folder) / SCHEMA, dataclasses.asdict(schema))


def read_schema(folder: str | Path) -> LatentSchema:
    """Return the schema of a folder of latents.

    Raises ValueError when the file is missing, damaged or of another version of the format, and
    when the job has not finished.
    """
    path = Path(folder) / SCHEMA
    if not path.is_file():
        if (Path(folder) / REQUEST).is_file():
            raise ValueError(
                f"the latents in {folder} are not complete; run the same command again, with the"
                " --config that began them"
            )
        raise ValueError(
            f"{folder} holds no latents: it has no {SCHEMA}; `python -m lit_jax encode` makes them"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or "version" not in content:
        raise ValueError(f"{path} is not the schema of a data set of latents")
    if content["version"] == 1:
        content = _of_version_1(content)
    elif content["version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has version {content['version']}, this program reads 1 to {SCHEMA_VERSION};"
            " encode the images again"
        )
    # A missing field would silently become a default.
    if missing := sorted({f.name for f in dataclasses.fields(LatentSchema)} - set(content)):
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    schema = from_mapping(LatentSchema, content, str(path))
    if schema.moments not in LAYOUTS:
        raise unknown_name(f"moments in {path}", schema.moments, LAYOUTS)
    return schema


def _of_version_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of version 1, without features of captions and buckets, in today's form.
    Training cannot use its captions, which have another name in the records."""
    captions = ["caption"] if content["captions"] else []
    return {**content, "captions": captions, "text": {}, "buckets": []}


def read_null_caption(folder: str | Path, schema: LatentSchema) -> np.ndarray:
    """Return the features of the empty caption at all positions: float32 [max_length, width].

    Raises ValueError when the data have no features of captions, or the file has another shape.
    """
    path = Path(folder) / NULL_CAPTION
    if not schema.text:
        raise ValueError(f"{folder} holds no features of captions, so no {NULL_CAPTION}")
    null = _read_array(path)
    shape = (schema.text["max_length"], schema.text["width"])
    if null.shape != shape or null.dtype != np.float32:
        raise ValueError(
            f"{path} is {null.dtype} {null.shape}, the schema requires float32 {shape}; copy the"
            " folder again"
        )
    return null


def read_buckets(folder: str | Path, schema: LatentSchema) -> np.ndarray:
    """Return the index into `schema.buckets` of each example: uint8 [count]; zeros without buckets.

    Raises ValueError when the file does not match the schema.
    """
    if not schema.buckets:
        return np.zeros(schema.count, np.uint8)
    path = Path(folder) / BUCKETS
    numbers = _read_array(path)
    if numbers.shape != (schema.count,) or numbers.max() >= len(schema.buckets):
        raise ValueError(
            f"{path} does not hold an index below {len(schema.buckets)} for each of {schema.count}"
            " examples; copy the folder again"
        )
    return numbers


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _read_array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy the folder again") from error
    return array
