"""Training in pixel space on images of class folders, of a TFDS data set, and of a new source."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from lit_jax.commands.train import job
from lit_jax.config import DataConfig, GridConfig, ModelSpec, SourceConfig, TrainConfig
from lit_jax.data import registry
from lit_jax.data.sources.folders import ClassFolders
from support import picture_cases, tiny_runs
from support.models import load_model_dir
from support.train_runs import reproducible


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    picture_cases.write_folders(path / "class_folders")
    return picture_cases.write_tfds(path)


def config(path: Path, kind: str, **changes: Any) -> TrainConfig:
    name = "pictures" if kind == "tfds" else "class_folders"
    data = DataConfig(name=name, data_dir=str(path), kind=kind, flip=True)
    size = tiny_runs.SIZE | {"in_channels": 3, "num_classes": len(picture_cases.CLASSES)}
    spec = ModelSpec(name="LiT", overrides=size)
    return tiny_runs.run_config(path, **({"data": data, "model": spec} | changes))


@pytest.mark.parametrize("kind", ["class_folders", "tfds"])
def test_resumed_run_equals_an_uninterrupted_one(
    pictures: Path, tmp_path: Path, one_device: None, kind: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job.train(config(pictures, kind), whole, lambda text: None)
    job.train(config(pictures, kind, total_steps=2), broken, lambda text: None)
    data = dataclasses.replace(config(pictures, kind).data, workers=1)
    job.train(config(pictures, kind, data=data), broken, lambda text: None)
    assert reproducible(broken) == reproducible(whole) and len(reproducible(whole)) == 4
    _, found = load_model_dir(broken)
    _, expected = load_model_dir(whole)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_changed_images_do_not_continue_a_run(
    pictures: Path, tmp_path: Path, one_device: None
) -> None:
    data = picture_cases.write_folders(tmp_path / "class_folders")
    job.train(config(tmp_path, "class_folders", total_steps=1), tmp_path / "run", lambda text: None)
    (data / "newt" / "more.png").write_bytes((data / "newt" / "02.png").read_bytes())
    with pytest.raises(ValueError, match="cannot be continued: .*data listing sha256"):
        job.train(config(tmp_path, "class_folders"), tmp_path / "run", lambda text: None)


def test_number_of_classes(pictures: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name="LiT", overrides=tiny_runs.SIZE | {"in_channels": 3})
    with pytest.raises(ValueError, match="has 3 classes, the model num_classes=10; use 3, or 0"):
        job.train(config(pictures, "tfds", model=spec), tmp_path / "run", lambda text: None)
    with pytest.raises(ValueError, match="has no classes, .* use 0"):
        job.train(config(pictures, "folder", model=spec), tmp_path / "run", lambda text: None)
    assert not (tmp_path / "run").exists()


class Stripes(ClassFolders):
    """A source from test code: stripes that no file holds."""

    def __init__(self, config: SourceConfig) -> None:
        self.classes = ("down", "across")

    def __len__(self) -> int:
        return 16

    def name(self, index: int) -> str:
        return f"stripes {index}"

    def load(self, index: int) -> Image.Image:
        image = np.zeros((8, 8, 3), np.uint8)
        image[:: 2 + index // 2] = 255
        return Image.fromarray(image if self.label(index) else image.swapaxes(0, 1))

    def label(self, index: int) -> int:
        return index % 2

    def listing_sha256(self) -> str:
        return "16 stripes"


def test_a_registered_source_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_device: None
) -> None:
    monkeypatch.setitem(registry.SOURCES, "stripes", Stripes)
    spec = ModelSpec(name="LiT", overrides=tiny_runs.SIZE | {"num_classes": 2})
    run = config(
        tmp_path, "stripes", model=spec, total_steps=1, sample=GridConfig(every=1, count=2)
    )
    job.train(run, tmp_path / "run", lambda text: None)
    assert len(reproducible(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "samples" / "0000001.png").exists()
