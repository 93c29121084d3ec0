"""What is known about a data set of latents: `schema.json` in its folder.

The folder given to `encode --out` holds

    schema.json    written last: a folder with it is complete
    skipped.json   images that could not be used, with the reason
    request.json   what was asked for, so that another request is refused
    1.0.0/         a TFDS data set: dataset_info.json, features.json, *.array_record-XXXXX-of-XXXXX

An example is {"name": text, "moments": [1 or 2, h, w, 2 L], "label": int64 (with classes),
"caption": text (with captions)}. `moments[0]` is the image, `moments[1]` its mirror image; along
the last axis L posterior means, then L log-variances, as `AutoencoderKL.encode` gives them: not
scaled, not clipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_jax.config import from_mapping
from lit_jax.files import write_json

SCHEMA, SKIPPED, REQUEST = "schema.json", "skipped.json", "request.json"
DATASET_NAME, DATASET_VERSION = "latents", "1.0.0"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LatentSchema:
    """The content of `schema.json`.

    `vae` holds the fields of `weights.fingerprint.VaeIdentity`: id, sha256, encoder_sha256,
    scaling_factor, downsampling, latent_channels. `latent_shape` is (h, w, L). `count` examples are
    stored, `skipped` images could not be used. `classes` is empty without labels. `source` says
    which images: kind, path, name, split, and the sha256 of their listing.
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
    captions: bool
    source: Mapping[str, Any]
    crop: str = "adm"
    moments: str = "mean, log_variance"
    version: int = SCHEMA_VERSION

    @property
    def split(self) -> str:
        """The only split of the data set."""
        return str(self.source["split"])

    def identity_sha256(self) -> str:
        """Hash of what the examples depend on. Where the images lie, what they are called there,
        and the name and decoder of the VAE are no part of it: hashes stand for the rest."""
        content = dataclasses.asdict(self)
        content["vae"] = {k: v for k, v in self.vae.items() if k not in ("id", "sha256")}
        content["source"] = {k: v for k, v in self.source.items() if k not in ("path", "name")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def moments_shape(self) -> tuple[int, int, int, int]:
        """(1 or 2, h, w, 2 L): the shape of "moments" in an example."""
        height, width, channels = self.latent_shape
        return 1 + self.mirrors, height, width, 2 * channels


def dataset_folder(folder: str | Path) -> Path:
    """The TFDS data set inside a folder of latents, for `tfds.builder_from_directory`."""
    return Path(folder) / DATASET_VERSION


def is_latent_folder(folder: str | Path) -> bool:
    """Whether an encode job has finished, or begun, in this folder."""
    return any((Path(folder) / name).is_file() for name in (SCHEMA, REQUEST))


def write_schema(folder: str | Path, schema: LatentSchema) -> None:
    """Writes `schema.json`, atomically: the last act of an encode job."""
    write_json(Path(folder) / SCHEMA, dataclasses.asdict(schema))


def read_schema(folder: str | Path) -> LatentSchema:
    """The schema of a folder of latents.

    Raises ValueError when there is none, when the encode job has not finished, and when the file
    is damaged or of another version of the format.
    """
    path = Path(folder) / SCHEMA
    if not path.is_file():
        if (Path(folder) / REQUEST).is_file():
            raise ValueError(
                f"the latents in {folder} are not complete; run the same encode command again"
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
    if content["version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has version {content['version']}, this program reads {SCHEMA_VERSION};"
            " encode the images again"
        )
    # A field that is not there would silently become a default.
    if missing := sorted({f.name for f in dataclasses.fields(LatentSchema)} - set(content)):
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return from_mapping(LatentSchema, content, str(path))
