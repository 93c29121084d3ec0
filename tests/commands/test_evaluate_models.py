"""The evaluate job: folders of images, drawn samples, and data sets of photographs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lit_jax.commands.sample.job import sample
from lit_jax.config.evaluate import ReferenceConfig
from lit_jax.config.protocol import Protocol
from lit_jax.config.sample import SampleConfig
from lit_jax.evaluation.network import read_network
from lit_jax.evaluation.reference import open_reference
from support.evaluate_cases import REFERENCE, SAMPLES, Place, Written, assert_close, make_place
from support.evaluation_cases import pictures, save_pngs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def written(place: Place) -> Written:
    return place.written()


def test_folders_of_pngs_give_the_same_scores(
    place: Place, written: Written, tmp_path: Path
) -> None:
    samples = save_pngs(tmp_path / "samples", SAMPLES)
    reference = save_pngs(tmp_path / "reference", REFERENCE)
    record, said = place.run(
        tmp_path / "m.json", samples=samples, source=reference, inception_batch_size=8
    )
    assert_close(record["metrics"], written[1]["metrics"])
    assert record["samples"]["images_sha256"] == written[1]["samples"]["images_sha256"]
    assert record["reference"]["images_sha256"] == written[1]["reference"]["images_sha256"]
    assert record["reference"]["kind"] == "folder"
    assert len(list(tmp_path.glob("reference-*.statistics.npz"))) == 1


class Photos(tfds.core.GeneratorBasedBuilder):
    """Twenty photographs of different sizes."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="png")})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(20):
            file = io.BytesIO()
            Image.fromarray(pictures(1, index, 60)[0, : 30 + index, :40]).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    Photos(data_dir=str(path), file_format="array_record").download_and_prepare()
    return path


def test_running_model(place: Place, teacher: Path, photos: Path, tmp_path: Path) -> None:
    """Draws samples beside the output, takes over how they were made; a TFDS reference."""
    protocol = Protocol("ddim", "ddim2", cfg_scale=2.0, seed=3)

    def draw(out: Path) -> Path:
        config = SampleConfig(str(teacher), str(out), 12, protocol, labels=(4, 7))
        return sample(config, log=lambda text: None)

    out = tmp_path / "metrics.json"
    reference = {"source": "tfds:photos:test", "data_dir": photos, "resolution": 8}
    given = {"samples": "", "model": teacher, "cache_dir": tmp_path / "cache", "images": 15}
    record, said = place.run(out, draw, **given, **reference)
    samples = record["samples"]
    stored = json.loads((tmp_path / "metrics.samples" / "sample.json").read_text())
    assert samples["weights_sha256"] == stored["weights_sha256"]
    assert (samples["sampler"], samples["steps"]) == ("ddim", "ddim2")
    assert samples["network_evaluations"] == 4 and samples["guidance_scale"] == 2.0
    assert (samples["guidance_channels"], samples["guidance_interval"]) == ("three", None)
    assert (samples["seed"], samples["labels"], samples["count"]) == (3, [4, 7], 12)
    assert samples["made_by"].endswith("sample.json") and samples["dtype"] == "float32"
    assert (record["reference"]["kind"], record["reference"]["count"]) == ("tfds", 20)
    assert (record["reference"]["pairwise_count"], record["reference"]["resolution"]) == (15, 8)
    assert record["metrics"]["precision"] is not None
    warnings = "\n".join(record["warnings"])
    assert "samples are grey" in warnings and "does not say" not in warnings
    (cache,) = (tmp_path / "cache").iterdir()
    assert cache.name.startswith("photos-test-8px-")
    assert "nothing to do" in place.run(out, draw, **given, **reference)[1]
    # Another request is refused before anything is drawn for it.
    with pytest.raises(ValueError, match="another request: .*resolution is 8, asked for is 0"):
        place.run(out, lambda folder: pytest.fail("drawn"), **given)
    # The file alone knows where it comes from.
    again, _ = place.run(tmp_path / "b.json", samples=tmp_path / "metrics.samples/samples.npz")
    assert again["samples"]["weights_sha256"] == stored["weights_sha256"]
    assert "samples have 8 x 8 pixels, the reference 24 x 24" in "\n".join(again["warnings"])


def test_home_is_found(place: Place, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    config = ReferenceConfig("tfds:photos:test", f"~/{photos.name}", 8)
    cache = open_reference(config, read_network(place.path / "inception")).cache
    assert cache is not None and cache.parent == photos


def test_sample_folders_that_cannot_be_used(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    np.savez(folder / "samples.npz", arr_0=SAMPLES)
    with pytest.raises(ValueError, match="s is not finished: .*run the same sample command again"):
        place.run(tmp_path / "m.json", samples=folder)
    (folder / "sample.json").write_text('{"count": 31, "dtype": "bfloat16"}')
    with pytest.raises(ValueError, match="speaks of 31 samples, .* holds 32"):
        place.run(tmp_path / "m.json", samples=folder)
    (folder / "samples.npz").rename(folder / "latents.npz")
    with pytest.raises(ValueError, match="only latents: sample with --vae"):
        place.run(tmp_path / "m.json", samples=folder)
    (folder / "latents.npz").rename(folder / "samples.npz")
    (folder / "sample.json").write_text('{"count": 32, "dtype": "bfloat16"}')
    record, _ = place.run(tmp_path / "m.json", samples=folder)
    warnings = "\n".join(record["warnings"])
    assert "sample.json does not say: model, weights_sha256, windows, sampler" in warnings
    assert "drawn in bfloat16" in warnings and record["samples"]["dtype"] == "bfloat16"
