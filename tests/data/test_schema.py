from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lit_jax.data.latents.schema import (
    LatentSchema,
    dataset_folder,
    is_latent_folder,
    read_schema,
    write_schema,
)

SCHEMA = LatentSchema(
    vae={"id": "x", "sha256": "0" * 64, "scaling_factor": 0.2, "downsampling": 8},
    dtype="float16",
    precision="highest",
    resolution=256,
    latent_shape=(32, 32, 4),
    mirrors=True,
    count=7,
    skipped=1,
    classes=("a", "b"),
    captions=(),
    text={},
    buckets=(),
    source={"kind": "class_folders", "path": "images", "split": "validation", "sha256": "1" * 64},
)


def test_round_trip(tmp_path: Path) -> None:
    write_schema(tmp_path, SCHEMA)
    assert read_schema(tmp_path) == SCHEMA
    assert [path.name for path in tmp_path.iterdir()] == ["schema.json"]
    assert is_latent_folder(tmp_path) and dataset_folder(tmp_path).name == "1.0.0"


def test_shapes_and_split() -> None:
    assert SCHEMA.moments_shape == (2, 32, 32, 8)
    assert dataclasses.replace(SCHEMA, mirrors=False).moments_shape == (1, 32, 32, 8)
    assert SCHEMA.split == "validation"
    assert SCHEMA.moments_shapes == ((2, 32, 32, 8),)
    mixed = dataclasses.replace(SCHEMA, buckets=((128, 512), (256, 256)))
    assert mixed.moments_shapes == ((2, 16, 64, 8), (2, 32, 32, 8))


@pytest.mark.parametrize(
    ("captions", "sha256"),
    [
        (False, "a62489746de918ec3ed2537f626c343da92e3b2ac408daeee910b4ba4c1a3e4d"),
        (True, "3ecf027e5f6ee8f5061bf3cd75e9fd5b96cc03ebda3d1bfcbfe736e458286857"),
    ],
)
def test_data_of_version_1_keep_their_hash(tmp_path: Path, captions: bool, sha256: str) -> None:
    """The hash is part of the checkpoints of runs that go on with these data."""
    vae = {"id": "v", "sha256": "0" * 64, "encoder_sha256": "1" * 64, "scaling_factor": 0.5}
    source = {"kind": "class_folders", "path": "p", "name": "", "split": "train"}
    content = {
        "vae": vae | {"downsampling": 2, "latent_channels": 4},
        "dtype": "float32",
        "precision": "highest",
        "resolution": 8,
        "latent_shape": [4, 4, 4],
        "mirrors": True,
        "count": 3,
        "skipped": 0,
        "classes": ["a", "b"],
        "captions": captions,
        "source": source | {"sha256": "2" * 64},
        "crop": "adm",
        "moments": "mean, log_variance",
        "version": 1,
    }
    (tmp_path / "schema.json").write_text(json.dumps(content))
    assert read_schema(tmp_path).identity_sha256() == sha256


def test_refuses_what_is_no_schema(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no latents: it has no schema.json"):
        read_schema(tmp_path)
    assert not is_latent_folder(tmp_path)
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(ValueError, match="are not complete; run the same command again"):
        read_schema(tmp_path)
    assert is_latent_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "has version 3, this program reads 1 to 2; encode the images again"),
        ({"colour": 1}, "unknown key of .*schema.json 'colour'"),
        ({"count": "7"}, r"schema.json.count is '7' \(str\); it must be int"),
        ({"dtype": None}, "schema.json.dtype is None"),
        ({"moments": "median"}, "unknown moments in .*schema.json 'median'"),
    ],
)
def test_refuses_other_content(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = dataclasses.asdict(SCHEMA) | change
    (tmp_path / "schema.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_schema(tmp_path)


def test_every_field_is_needed(tmp_path: Path) -> None:
    for name in dataclasses.asdict(SCHEMA):
        content = dataclasses.asdict(SCHEMA)
        del content[name]
        (tmp_path / "schema.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"lacks {name}|is not the schema"):
            read_schema(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_refuses_damaged_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match="is not JSON|is not the schema"):
        read_schema(tmp_path)
