"""The sampling job: what it writes, what it refuses, and that it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import pytest
from PIL import Image

import lit_jax
from lit_jax import sharding
from lit_jax.checkpoints.identity import params_sha256
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.commands.sample import job
from lit_jax.config import MeshConfig
from lit_jax.config.protocol import Protocol
from lit_jax.sampling.labels import assign_labels
from support import kills, tiny_runs
from support.models import load_model_dir
from support.sampling import sample

pytestmark = pytest.mark.usefixtures("compiled_once")
GUIDED = Protocol(steps="6", cfg_scale=2.0, cfg_channels="all", seed=3)
COUNT = 11
FILES = ["grid.png", "request.json", "sample.json", "samples.npz"]


def pixels(out: Path) -> np.ndarray:
    with np.load(out / "samples.npz") as samples:
        return samples["arr_0"].astype(int)


@pytest.fixture(scope="module")
def written(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples drawn on all eight devices, in shards of 4, 4 and 3."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("out") / "s"
    assert sample(teacher, out, COUNT, GUIDED, log=said.append, shard_size=4) == out
    assert "12 network evaluations per image" in said[0] and str(out) in said[-1]
    assert [line.split(":")[0] for line in said[1:4]] == [
        f"shard {i} of 3 (images {span})"
        for i, span in ((1, "0 to 3"), (2, "4 to 7"), (3, "8 to 10"))
    ]
    return out


def test_files(written: Path, teacher: Path) -> None:
    assert sorted(p.name for p in written.iterdir()) == FILES
    with np.load(written / "samples.npz") as samples:
        images, labels = samples["arr_0"], samples["labels"]
    assert images.shape == (COUNT, 8, 8, 1) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0] and labels.dtype == np.int32
    grid = np.asarray(Image.open(written / "grid.png"))
    assert grid.shape[0] > 2 * 8 and grid.shape[1] > 10 * 8

    record = json.loads((written / "sample.json").read_text())
    assert record == {
        "model": str(teacher),
        "weights_sha256": params_sha256(load_model_dir(teacher)[1]),
        "windows": None,
        "protocol": dataclasses.asdict(GUIDED),
        "network_evaluations": 12,
        "count": COUNT,
        "label_policy": "balanced",
        "labels": None,
        "vae": None,
        "vae_named_by_model": False,
        "dtype": "float32",
        "matmul_precision": "default",
        "devices": "8 x cpu",
        "versions": {
            "lit_jax": lit_jax.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
    }


def test_a_real_process_draws_the_same(written: Path, teacher: Path, tmp_path: Path) -> None:
    """One device instead of eight, fewer images, other batches and shards."""
    flags = {"model": teacher, "out": tmp_path / "s", "num_samples": 5, "steps": 6, "seed": 3}
    flags |= {"cfg_scale": 2.0, "cfg_channels": "all", "batch_size": 3, "shard_size": 3}
    arguments = ["sample", *(f"--{name}={value}" for name, value in flags.items())]
    output = tiny_runs.run(arguments)
    assert f"wrote {tmp_path / 's'}" in output
    assert np.abs(pixels(written)[:5] - pixels(tmp_path / "s")).max() <= 1
    records = [json.loads((f / "sample.json").read_text()) for f in (written, tmp_path / "s")]
    assert {k for k in records[0] if records[0][k] != records[1][k]} == {"count", "devices"}


def test_two_processes_draw_the_same(written: Path, teacher: Path, tmp_path: Path) -> None:
    """They share the shards that a process before them left, and both end well."""
    out = tmp_path / "s"
    half_done(teacher, out, shards=1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = {"model": teacher, "out": out, "num_samples": COUNT, "steps": 6, "seed": 3}
    flags |= {"cfg_scale": 2.0, "cfg_channels": "all", "shard_size": 4}
    arguments = ["sample", *(f"--{name}={value}" for name, value in flags.items())]
    cluster = {"LIT_JAX_DISTRIBUTED": "1", "JAX_COORDINATOR_ADDRESS": address}
    programs = [
        tiny_runs.start(arguments, **cluster, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index))
        for index in range(2)
    ]
    outputs = [tiny_runs.finish(program) for program in programs]
    assert "2 of 3 shards are left" in outputs[0]
    # Each draws one of the two; only process 0 prints.
    assert outputs[0].count("\nshard ") == 1
    assert f"wrote {out}" in outputs[0] and "shard" not in outputs[1]
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert np.abs(pixels(written) - pixels(out)).max() <= 1
    record = json.loads((out / "sample.json").read_text())
    assert record["devices"] == "1 x cpu, 8 x cpu"


class Stopped(Exception):
    pass


def half_done(teacher: Path, out: Path, shards: int) -> None:
    """Stops the job of `written` after so many shards."""
    lines = 0

    def log(text: str) -> None:
        nonlocal lines
        lines += text.startswith("shard ")
        if lines == shards:
            raise Stopped

    with pytest.raises(Stopped):
        sample(teacher, out, COUNT, GUIDED, log=log, shard_size=4)
    assert len(list((out / "shards").iterdir())) == shards and not (out / "samples.npz").exists()


def test_finished_shards_are_not_drawn_again(
    written: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    half_done(teacher, out, shards=2)
    drawn: list[int] = []
    original = job.draw_shard
    monkeypatch.setattr(
        job, "draw_shard", lambda *given: drawn.append(given[-1]) or original(*given)
    )
    said: list[str] = []
    sample(teacher, out, COUNT, GUIDED, log=said.append, shard_size=4)
    assert drawn == [2] and said[1] == "1 of 3 shards are left"
    assert kills.contents(out) == kills.contents(written)


def test_a_finished_request_has_nothing_to_do(written: Path, teacher: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    # Shards that a kill left behind the record go; the samples stay.
    (written / "shards").mkdir()
    said: list[str] = []
    sample(teacher, written, COUNT, GUIDED, log=said.append, shard_size=4, batch_size=2)
    assert said == [f"nothing to do: {written} holds these {COUNT} samples"]
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


def test_a_damaged_shard_is_named(teacher: Path, tmp_path: Path) -> None:
    half_done(teacher, tmp_path / "s", shards=2)
    damaged = tmp_path / "s/shards/00001-of-00003.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(ValueError, match="00001-of-00003.npz is damaged .* remove it and run"):
        sample(teacher, tmp_path / "s", COUNT, GUIDED, shard_size=4)
    damaged.unlink()
    sample(teacher, tmp_path / "s", COUNT, GUIDED, shard_size=4)


def test_an_image_that_is_not_finite_is_named(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image 6 (the third of the second shard): its shard is not written, the first one stays."""
    original = job.LabelBatches.batches

    def broken(self: Any, start: int, stop: int) -> Any:
        for first, x, decoded in original(self, start, stop):
            if first <= 6 < first + len(x):
                x = x.copy()
                x[6 - first, 3, 3] = np.nan
            yield first, x, decoded

    monkeypatch.setattr(job.LabelBatches, "batches", broken)
    with pytest.raises(FloatingPointError, match=r"image 6 \(label 6\) is not finite"):
        sample(teacher, tmp_path / "s", COUNT, GUIDED, shard_size=4)
    assert [p.name for p in (tmp_path / "s/shards").iterdir()] == ["00000-of-00003.npz"]
    assert not (tmp_path / "s/samples.npz").exists()


def test_policies_and_dtypes_reach_the_samples(teacher: Path, tmp_path: Path) -> None:
    protocol, config = Protocol(steps="2", seed=5), ModelFolder(teacher).config
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "uniform": {"label_policy": "uniform"},
        "given": {"labels": (4, 1)},
        "bfloat16": {"dtype": "bfloat16"},
    }
    for name, changes in variants.items():
        sample(teacher, tmp_path / name, 12, protocol, **changes)
    records, labels = {}, {}
    for name in variants:
        records[name] = json.loads((tmp_path / name / "sample.json").read_text())
        with np.load(tmp_path / name / "samples.npz") as samples:
            labels[name] = samples["labels"].tolist()
    uniform = assign_labels(config, (), 12, "uniform", protocol.seed)
    assert uniform is not None and labels["uniform"] == uniform.tolist() != labels["plain"]
    assert records["uniform"]["label_policy"] == "uniform"
    assert labels["given"] == [4, 1] * 6 and records["given"]["labels"] == [4, 1]
    assert records["bfloat16"]["dtype"] == "bfloat16"
    difference = np.abs(pixels(tmp_path / "bfloat16") - pixels(tmp_path / "plain"))
    assert difference.max() > 0 and difference.mean() < 10


def test_sizes_of_batches_reach_the_drawing(
    latent_model: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, seen = sharding.make_mesh(MeshConfig(), jax.devices()[:1]), {}
    monkeypatch.setattr(sharding, "make_mesh", lambda *given: mesh)
    monkeypatch.setattr(job, "make_sampler", lambda *given, **named: seen.update(named))

    def stop(*given: Any) -> None:
        seen["batch"] = given[6]
        raise Stopped

    monkeypatch.setattr(job, "LabelBatches", stop)
    given = {"batch_size": 10, "decode_batch_size": 3, "shard_size": 27, "vae": vae}
    with pytest.raises(Stopped):
        sample(latent_model, tmp_path / "s", 100, Protocol(steps="2"), **given)
    # Three even batches per shard.
    assert seen["decode_batch_size"] == 3 and seen["batch"] == 9


@pytest.mark.slow
def test_killed_job_ends_in_the_same_bytes(latent_model: Path, vae: Path, tmp_path: Path) -> None:
    """100 shards of images and latents: drawing and merging take about the same time."""
    run = functools.partial(
        sample,
        latent_model,
        num_samples=600,
        protocol=Protocol(steps="3"),
        vae=vae,
        save_latents=True,
        shard_size=6,
    )
    assert kills.survives_kills(run, tmp_path, 7, seed=random.randrange(10**6)) >= 7


MERGING: dict[str, Callable[[Path], Path]] = {
    "first file": lambda out: out / "samples.npz",
    "grid": lambda out: out / "grid.png",
    "record": lambda out: out / "sample.json",
}


@pytest.mark.parametrize("moment", MERGING)
def test_stopped_while_merging(
    written: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As a kill leaves it: the file half written under its temporary name, nothing cleaned up."""
    out, target = tmp_path / "s", MERGING[moment](tmp_path / "s")
    replace = os.replace

    def stop(source: Path, destination: Path) -> None:
        if destination == target:
            half = Path(source).with_name(f".{target.name}.1.tmp")
            half.write_bytes(Path(source).read_bytes()[:100])
            raise Stopped
        replace(source, destination)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(Stopped):
        sample(teacher, out, COUNT, GUIDED, shard_size=4)
    monkeypatch.setattr(os, "replace", replace)
    assert (out / f".{target.name}.1.tmp").exists() and len(list((out / "shards").iterdir())) == 3
    monkeypatch.setattr(job, "draw_shard", None)  # nothing is drawn again
    sample(teacher, out, COUNT, GUIDED, shard_size=4)
    assert kills.contents(out) == kills.contents(written)
