"""What version 0.1.0 left on disk: every later version reads it, and goes on with unfinished work.

`golden/recorded/make.py` says how it was made. Only commands and public names are used here, those
that people have in their scripts, so that this file stays as it is when the package is rearranged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx, traverse_util
from PIL import Image

import lit_jax

ROOT = Path(__file__).resolve().parents[1]
RECORDED = Path(__file__).resolve().parent / "golden" / "recorded"
COMMANDS: dict[str, list[str]] = json.loads((RECORDED / "commands.json").read_text())
NETWORKS = ("clear", "dig", "dit", "inception", "lit", "pixart", "t5", "t5_int8", "vae")
TOLERANCE = 1e-4  # of float32, relative to the largest number of an array
STOPPED = 3  # the training step after which the unfinished runs were stopped
SAME_JAX = pytest.mark.skipif(
    jax.__version__ != "0.10.2", reason="what a compiler counts is that of its version"
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Unpack all that was recorded into a folder, to be read only."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDED / "recorded.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    shutil.copy(RECORDED / "experiments.py", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def recorded(unpacked: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy it into a working directory for commands, whose paths are all relative."""
    yield shutil.copytree(unpacked, tmp_path / "recorded")
    shutil.rmtree(tmp_path / "recorded")  # 36 MB, which pytest would keep


def call(folder: Path, name: str, out: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a recorded command in `folder` as it was run, perhaps with another output and with
    further flags."""
    *words, output = COMMANDS[name]
    words += [f"{output.split('=')[0]}={out}" if out else output, *flags]
    # One device, as when it was recorded, and programs that are compiled in half the time.
    devices = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    return subprocess.run(
        [sys.executable, "-m", "lit_jax", *words],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(folder: Path, name: str, out: str = "") -> None:
    """Run a recorded command, which must succeed."""
    done = call(folder, name, out)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Return hash and time of change of every file below `folder`, by relative path."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def assert_close(found: Any, expected: np.ndarray) -> None:
    """Compare: images may differ by one grey level, floats by rounding, others not at all."""
    found = np.asarray(found)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.dtype == np.uint8:
        assert np.abs(found.astype(int) - expected).max() <= 1
    elif expected.dtype.kind == "f":
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    else:
        np.testing.assert_array_equal(found, expected)


# --- networks ---


def params_sha256(model: Any) -> str:
    """Compute what `sample.json` calls weights_sha256, by code of our own."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    leaves = {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in flat.items()}
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves.items()):
        digest.update(f"{path}|{leaf.dtype.str}|{leaf.shape}|".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def outputs(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Compute what a network makes of its recorded inputs, by the names of recorded outputs."""
    if "ids" in given:
        return {"features": model(given["ids"], given["mask"])}
    if "latents" in given:
        return {"encoded": model.encode(given["images"]), "decoded": model.decode(given["latents"])}
    if "images" in given:
        found = jax.jit(lambda images: model(images))(given["images"])
        return {"pool": found[0], "logits": found[1]}
    cond = given["labels"] if "labels" in given and model.config.num_classes else None
    if "tokens" in given:
        cond = lit_jax.TextCondition(given["tokens"], given["mask"])
    return {"out": model(given["x"], given["t"], cond)}


def assert_same_network(folder: Path, unpacked: Path, name: str) -> None:
    """Check that the model in `folder` computes what the one called `name` did."""
    with np.load(unpacked / "expected.npz") as stored:
        arrays = {key.split(":")[1]: stored[key] for key in stored if key.split(":")[0] == name}
    found = outputs(
        lit_jax.load_model(folder), {k: jax.numpy.asarray(v) for k, v in arrays.items()}
    )
    for key, value in found.items():
        assert_close(value, arrays[key])


@pytest.mark.parametrize("name", [*(f"models/{name}" for name in NETWORKS), "run", "run_text"])
def test_networks_compute_what_they_did(unpacked: Path, name: str) -> None:
    """Model folders, and training workdirs with their moving averages."""
    expected = read_json(unpacked / "expected.json")["params_sha256"][name]
    assert params_sha256(lit_jax.load_model(unpacked / name)) == expected
    assert_same_network(unpacked / name, unpacked, name)


# --- finished work ---


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SAME_JAX if name == "cost" else ()) for name in COMMANDS]
)
def test_finished_work_is_left_alone(recorded: Path, name: str) -> None:
    """The same command finds nothing to do: not one file is written, not even with the same
    content."""
    before = contents(recorded)
    run(recorded, name)
    after = contents(recorded)
    assert after.keys() == before.keys()
    assert [path for path in before if after[path] != before[path]] == []


def test_statistics_of_a_reference_are_found(recorded: Path) -> None:
    """Other scores against the same reference do not measure it again, and come out the same."""
    (statistics,) = recorded.glob("*.statistics.npz")
    changed = statistics.stat().st_mtime_ns
    run(recorded, "evaluate", out="again.json")
    assert list(recorded.glob("*.statistics.npz")) == [statistics]
    assert statistics.stat().st_mtime_ns == changed
    found, expected = (read_json(recorded / name) for name in ("again.json", "metrics.json"))
    assert found["request"] == expected["request"]
    for name, value in expected["metrics"].items():
        wanted = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)
        assert found["metrics"][name] == wanted, name


# --- unfinished work ---


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def records(folder: Path) -> list[dict[str, Any]]:
    """Read all examples of a folder of latents, in order."""
    builder = tfds.builder_from_directory(folder / "1.0.0")
    return list(builder.as_data_source("train"))


@pytest.mark.parametrize(("name", "out"), [("encode", "latents"), ("self_generate", "drawn")])
def test_latents_are_completed(recorded: Path, name: str, out: str) -> None:
    """Files of the first run stay; what is added is what an uninterrupted run wrote."""
    half, whole = recorded / "half" / out, recorded / out
    kept = contents(half / "1.0.0")
    run(recorded, name, out=f"half/{out}")
    assert kept.items() <= contents(half / "1.0.0").items()
    assert files_of(half) == files_of(whole)
    assert read_json(half / "schema.json") == read_json(whole / "schema.json")
    for found, expected in zip(records(half), records(whole), strict=True):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], np.asarray(expected[key]))


@pytest.mark.parametrize(("name", "out"), [("train", "run"), ("train_text", "run_text")])
def test_training_goes_on(recorded: Path, name: str, out: str) -> None:
    """The remaining steps are those of an uninterrupted run, and so is the model at the end."""

    def trace(workdir: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]

    half, whole = recorded / "half" / out, recorded / out
    before = trace(half)
    run(recorded, name, out=f"half/{out}")
    after, expected = trace(half), trace(whole)
    assert len(before) == STOPPED and after[:STOPPED] == before
    for line in (*after, *expected):
        del line["clock"]
    assert len(after) == len(expected)
    for found, line in zip(after, expected, strict=True):
        assert found == pytest.approx(line, rel=TOLERANCE)
    assert_same_network(half, recorded, out)


def test_training_goes_on_with_nothing_else(recorded: Path) -> None:
    """A checkpoint is still compared with what is asked for, entry by entry."""
    changed = {
        "seed": "--config.seed=1",
        "batch_size": "--config.batch_size=2",
        "data.flip": "--config.data.flip=False",
        "optimizer.clip_norm": "--config.optimizer.clip_norm=0.0",
    }
    done = call(recorded, "train", "half/run", *changed.values())
    assert done.returncode == 1
    assert [name for name in changed if name not in done.stderr] == []


def test_samples_are_completed(recorded: Path) -> None:
    """Shards of the first run are taken bit by bit."""
    half, whole = recorded / "half" / "samples", recorded / "samples"
    shards = [dict(np.load(path)) for path in sorted((half / "shards").iterdir())]
    assert len(shards) == 2
    run(recorded, "sample", out="half/samples")
    assert files_of(half) == files_of(whole)
    for file, name in (("samples.npz", "images"), ("latents.npz", "latents")):
        with np.load(half / file) as found, np.load(whole / file) as expected:
            assert_close(found["arr_0"], expected["arr_0"])
            np.testing.assert_array_equal(found["labels"], expected["labels"])
            kept = np.concatenate([shard[name] for shard in shards])
            np.testing.assert_array_equal(found["arr_0"][: len(kept)], kept)
    found, expected = (read_json(folder / "sample.json") for folder in (half, whole))
    assert found | {"versions": None} == expected | {"versions": None}


def test_pictures_are_completed(recorded: Path) -> None:
    """Latents of the first run are decoded: exchanged, they become each other's pictures."""
    half, whole = recorded / "half" / "pictures", recorded / "pictures"
    first, second = sorted(half.rglob("latents/*.npz"))
    os.rename(first, first.with_suffix(".other"))
    os.rename(second, first)
    os.rename(first.with_suffix(".other"), second)
    run(recorded, "generate", out="half/pictures")
    assert files_of(half) == files_of(whole)
    for found, expected in zip((1, 0, 2), sorted(whole.glob("*.png")), strict=True):
        assert_close(pixels(half / f"{found:05d}.png"), pixels(expected))
    found, expected = (read_json(folder / "generate.json") for folder in (half, whole))
    assert found | {"versions": None} == expected | {"versions": None}


@SAME_JAX
def test_costs_are_completed(recorded: Path) -> None:
    """What the compiler has counted is not counted again, which a changed number shows."""
    half, whole = recorded / "half" / "cost", recorded / "cost"
    (name,) = counted = read_json(half / "compiled.json")
    counted[name]["flops"] = 1.0
    (half / "compiled.json").write_text(json.dumps(counted))
    run(recorded, "cost", out="half/cost")
    found, expected = (read_json(folder / "cost.json") for folder in (half, whole))
    assert name == "models/dit at 16, forward"
    assert found["models"]["models/dit"]["16"]["compiled"]["forward"] == counted[name]
    for name in ("heads", "window_keys"):  # now in benchmarks/paper_figures.py
        del expected[name]
    for content in (found, expected):
        for sides in content["models"].values():
            for side in sides.values():
                side["compiled"] = sorted(side["compiled"])  # numbers are the compiler's
    assert found == expected
