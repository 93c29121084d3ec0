"""The sampling job: what it writes, and what an image depends on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_runs
from PIL import Image

from lit_jax import sharding
from lit_jax.config import MeshConfig
from lit_jax.data.transforms import to_uint8
from lit_jax.jobs.sample import Protocol, assign_labels, draw_grid, generate, load_sharded, sample
from lit_jax.weights.fingerprint import params_sha256

GUIDED = Protocol(steps="6", cfg_scale=2.0, cfg_channels="all", seed=3)
COUNT = 11


def one_device() -> Any:
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def written(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples drawn on all eight devices."""
    said: list[str] = []
    out = sample(teacher, tmp_path_factory.mktemp("out") / "s", COUNT, GUIDED, say=said.append)
    assert "12 network evaluations per image" in said[0] and str(out) in said[-1]
    return out


def test_files(written: Path, teacher: Path) -> None:
    assert sorted(p.name for p in written.iterdir()) == ["grid.png", "sample.json", "samples.npz"]
    with np.load(written / "samples.npz") as samples:
        images, labels = samples["arr_0"], samples["labels"]
    assert images.shape == (COUNT, 8, 8, 1) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    grid = np.asarray(Image.open(written / "grid.png"))
    assert grid.shape[0] > 2 * 8 and grid.shape[1] > 10 * 8

    record = json.loads((written / "sample.json").read_text())
    _, params = load_sharded(teacher, one_device())
    assert record == {
        "model": str(teacher),
        "weights_sha256": params_sha256(params),
        "protocol": dataclasses.asdict(GUIDED),
        "network_evaluations": 12,
        "count": COUNT,
        "vae": None,
        "dtype": "float32",
        "devices": "8 x cpu",
    }


@pytest.mark.parametrize("batch_size", [4, 7])
def test_images_depend_on_neither_batch_nor_devices(
    written: Path, teacher: Path, batch_size: int
) -> None:
    images = []
    for mesh, size in ((one_device(), batch_size), (sharding.make_mesh(MeshConfig()), 64)):
        config, params = load_sharded(teacher, mesh)
        labels = assign_labels(config, (), COUNT)
        images.append(generate(config, params, GUIDED, labels, COUNT, mesh, size))
    # An untrained model saturates many pixels: compare the floats, too.
    np.testing.assert_allclose(images[0], images[1], rtol=1e-4, atol=1e-3)
    with np.load(written / "samples.npz") as samples:
        expected = samples["arr_0"].astype(int)
    assert np.abs(to_uint8(images[0]).astype(int) - expected).max() <= 1
    assert len(np.unique(images[1].reshape(COUNT, -1), axis=0)) == COUNT


def test_a_real_process_draws_the_same(written: Path, teacher: Path, tmp_path: Path) -> None:
    """One device, fewer images, a batch of its own."""
    flags = {"model": teacher, "out": tmp_path / "s", "num_samples": 5, "steps": 6, "seed": 3}
    flags |= {"cfg_scale": 2.0, "cfg_channels": "all", "batch_size": 3}
    output = tiny_runs.run(["sample", *(f"--{name}={value}" for name, value in flags.items())])
    assert f"wrote {tmp_path / 's'}" in output
    with np.load(written / "samples.npz") as first, np.load(tmp_path / "s/samples.npz") as second:
        difference = first["arr_0"][:5].astype(int) - second["arr_0"].astype(int)
    assert np.abs(difference).max() <= 1
    records = [json.loads((f / "sample.json").read_text()) for f in (written, tmp_path / "s")]
    assert {k for k in records[0] if records[0][k] != records[1][k]} == {"count", "devices"}


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latent") / "model"
    return tiny_runs.save_model(path, in_channels=4, patch_size=8, depth=1)


def drawn(model: Path, **changes: Any) -> np.ndarray:
    config, params = load_sharded(model, one_device())
    protocol = Protocol(**({"steps": "5"} | changes))
    labels = assign_labels(config, (4, 9), 3)
    return generate(config, params, protocol, labels, 3, one_device(), 3)


def test_every_option_changes_the_images(latent_model: Path) -> None:
    plain = drawn(latent_model)
    assert plain.shape == (3, 8, 8, 4) and plain.dtype == np.float32
    variants = {
        "plain": plain,
        "three": drawn(latent_model, cfg_scale=3.0),
        "all": drawn(latent_model, cfg_scale=3.0, cfg_channels="all"),
        "interval": drawn(latent_model, cfg_scale=3.0, cfg_interval=(100.0, 600.0)),
        "ddim": drawn(latent_model, sampler="ddim"),
        "steps": drawn(latent_model, steps="ddim5"),
        "seed": drawn(latent_model, seed=1),
    }
    names = list(variants)
    for i, first in enumerate(names):
        for second in names[:i]:
            difference = np.abs(variants[first] - variants[second]).max()
            assert difference > 1e-3, (first, second, difference)


def test_interval_without_steps_is_no_guidance(latent_model: Path) -> None:
    plain = drawn(latent_model)
    outside = drawn(latent_model, cfg_scale=3.0, cfg_interval=(1.0, 2.0))
    np.testing.assert_allclose(outside, plain, rtol=1e-5, atol=1e-5)


def test_grid_of_a_run(teacher: Path, tmp_path: Path) -> None:
    """Drawn while training; a model that has gone wrong does not stop the run."""
    config, params = load_sharded(teacher, one_device())
    protocol, path = Protocol(steps="6", cfg_scale=2.0, cfg_channels="all"), tmp_path / "g.png"
    grid = draw_grid(config, params, protocol, 3, one_device(), path)
    assert grid is not None and grid.dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(Image.open(path)), grid.squeeze(-1))
    path.unlink()
    params["x_embedder"]["bias"] = params["x_embedder"]["bias"] * np.nan
    assert draw_grid(config, params, protocol, 3, one_device(), path) is None
    assert not path.exists()


def test_latents_are_written_as_they_are(latent_model: Path, tmp_path: Path) -> None:
    protocol = Protocol(steps="5")
    out = sample(latent_model, tmp_path / "s", 3, protocol, (4, 9), 3, say=lambda text: None)
    assert sorted(path.name for path in out.iterdir()) == ["latents.npz", "sample.json"]
    with np.load(out / "latents.npz") as samples:
        assert samples["labels"].tolist() == [4, 9, 4]
        assert samples["arr_0"].dtype == np.float32
        np.testing.assert_allclose(samples["arr_0"], drawn(latent_model), rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("odd")
    return {
        "unconditional": tiny_runs.save_model(path / "unconditional", num_classes=0),
        "no null": tiny_runs.save_model(path / "no_null", class_dropout_prob=0.0),
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"model": "nowhere"}, "nowhere is not a model folder or training workdir"),
    "labels": ({"labels": (3, 10, -1)}, r"labels \[10, -1\] are not in 0..9"),
    "sampler": ({"sampler": "dmpd"}, "unknown sampler 'dmpd'.*ddim, ddpm"),
    "channels": ({"cfg_channels": "two"}, "unknown guidance channels 'two'.*all, three"),
    "seed": ({"seed": 2**32}, "seed 4294967296 is not in 0..4294967295"),
    "steps": ({"steps": "5000"}, "5000"),
    "interval": ({"cfg_scale": 2.0, "cfg_interval": (500.0, 100.0)}, r"interval .* is empty"),
    "count": ({"num_samples": 0}, "num_samples 0"),
    "batch": ({"batch_size": 0}, "batch_size 0"),
    "out": ({"out": "written"}, "already holds samples; choose another --out"),
    "unconditional": ({"model": "unconditional", "labels": (1,)}, "model is unconditional"),
    "no null": ({"model": "no null", "cfg_scale": 2.0}, "guidance 2.0 needs a null class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(
    teacher: Path, written: Path, odd_models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    changes, named = REFUSED[case]
    given = {"model": teacher, "out": tmp_path / "s", "num_samples": 2, "labels": ()} | changes
    given["model"] = odd_models.get(str(given["model"]), given["model"])
    if given["out"] == "written":
        given["out"] = written
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    fields = {f.name for f in dataclasses.fields(Protocol)}
    protocol = Protocol(**{k: v for k, v in given.items() if k in fields})
    said: list[str] = []
    with pytest.raises(ValueError, match=named):
        sample(
            given["model"],
            given["out"],
            given["num_samples"],
            protocol,
            given["labels"],
            given.get("batch_size", 2),
            said.append,
        )
    assert said == [] and list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before
