"""The training job on latents: what it checks, whose data it reads, and how it goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.commands.train import job
from lit_jax.config import DataConfig, ModelSpec, TrainConfig
from lit_jax.training.metrics import read_trace
from lit_jax.training.step import noised_example
from support import latent_cases, tiny_runs
from support.latent_cases import NAME
from support.models import load_model_dir, vae_identity
from support.train_runs import (
    checkpoints,
    experiment,
    read_until,
    reproducible,
    run_on_two_processes,
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> DataConfig:
    path = tmp_path_factory.mktemp("latents")
    latent_cases.write_latents(path / NAME, vae)
    return DataConfig(name=NAME, data_dir=str(path), vae=str(vae), flip=True)


def run_config(
    data: DataConfig, model: dict[str, Any] | None = None, **changes: Any
) -> TrainConfig:
    overrides = tiny_runs.SIZE | latent_cases.MODEL | (model or {})
    return tiny_runs.run_config(
        data.data_dir, data=data, model=ModelSpec(name="LiT", overrides=overrides), **changes
    )


def arguments(data: DataConfig, workdir: Path, **values: Any) -> list[str]:
    """The same run on the command line."""
    settings = {f"data__{name}": value for name, value in dataclasses.asdict(data).items()}
    settings |= {f"model__overrides__{name}": v for name, v in latent_cases.MODEL.items()}
    return experiment(Path(data.data_dir), workdir, **(settings | values))


@pytest.mark.usefixtures("one_device")
def test_three_steps(latents: DataConfig, tmp_path: Path) -> None:
    said: list[str] = []
    vae = vae_identity(latents.vae)
    job.train(run_config(latents, total_steps=3), tmp_path / "run", said.append)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["vae"] == dataclasses.asdict(vae)
    assert saved["train"]["data"] == json.loads(json.dumps(dataclasses.asdict(latents)))
    lines = read_trace(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    # A new model predicts no noise at all.
    assert lines[0]["mse"] == pytest.approx(1, abs=0.2)
    assert ModelFolder(tmp_path / "run").config.in_channels == 4
    job.train(run_config(latents, total_steps=3), tmp_path / "run", said.append)
    assert "nothing to do: total_steps is 3, step 3 is reached" in said[-1]


@pytest.mark.usefixtures("one_device")
def test_scale_reaches_the_step(latents: DataConfig, tmp_path: Path) -> None:
    """Half the scale, half the latent."""
    starts = []
    for scale in (0.2, 0.1):
        vae = latent_cases.save_vae(tmp_path / f"vae_{scale}", scaling_factor=scale)
        latent_cases.write_latents(tmp_path / str(scale) / NAME, vae)
        data = dataclasses.replace(latents, vae=str(vae), data_dir=str(tmp_path / str(scale)))
        run = job.check(run_config(data), tmp_path / "run", lambda text: None)
        with job.checkpoint.open_manager(tmp_path / str(scale), 1, 1) as manager:
            task, state = job.start(run, manager, job.load_teacher(run))
        batch = next(run.data)
        starts.append(np.asarray(noised_example(task, state.step, batch, state.params)["x_start"]))
    np.testing.assert_allclose(starts[0], 2 * starts[1], rtol=1e-6)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("captions", [(), ("txt",)])
def test_latents_without_classes_train_an_unconditional_model(
    vae: Path, tmp_path: Path, captions: tuple[str, ...]
) -> None:
    latent_cases.write_latents(tmp_path / NAME, vae, classes=(), captions=captions)
    data = DataConfig(name=NAME, data_dir=str(tmp_path), vae=str(vae))
    with pytest.raises(ValueError, match="has no classes, the model num_classes=3; use 0"):
        job.train(run_config(data, total_steps=1), tmp_path / "run", lambda text: None)
    if not captions:
        config = run_config(data, {"num_classes": 0}, total_steps=1)
        job.train(config, tmp_path / "run", lambda text: None)
        assert len(read_trace(tmp_path / "run" / "metrics.jsonl")) == 1


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no vae": ({"vae": ""}, {}, "data.vae is empty; give the model folder of the VAE that made"),
    "no such vae": ({"vae": "nowhere"}, {}, "nowhere is not a model folder"),
    "other weights": ({"vae": "{other}"}, {}, "the latents in .* belong to the VAE tiny-vae .*oth"),
    "other scale": ({"vae": "{scaled}"}, {}, "scale 0.18215.*scaled.*scale 0.5"),
    "no vae at all": ({"vae": "{model}"}, {}, "holds a DiT; a VAE"),
    "grid": (
        {},
        {"input_size": 8},
        r"latents of images of 8 x 8 pixels, \(4, 4, 4\), .* \(8, 8, 4",
    ),
    "channels": ({}, {"in_channels": 3}, r"\(4, 4, 4\), the model takes \(4, 4, 3\)"),
    "classes": ({}, {"num_classes": 10}, "has 3 classes, the model num_classes=10; use 3, or 0"),
    "split": ({"split": "test"}, {}, "unknown split of .* 'test'"),
    "name": ({"name": "tiny"}, {}, "unknown data set 'tiny'.*holds no latents"),
    "pixels": (
        {"name": "digits", "kind": "tfds"},
        {},
        "data.vae is .*, but data set 'digits' holds pixels",
    ),
    "workers": ({"workers": -1}, {}, "data.workers is -1; it must be at least 0"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("other_models")
    return {
        "other": str(latent_cases.save_vae(path / "other", layers_per_block=2)),
        "scaled": str(latent_cases.save_vae(path / "scaled", scaling_factor=0.5)),
        "model": str(tiny_runs.save_model(path / "model")),
    }


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_run_is_refused_before_anything_happens(
    latents: DataConfig, folders: dict[str, str], tmp_path: Path, case: str
) -> None:
    data, model, named = REFUSED[case]
    said: list[str] = []
    filled = {k: v.format(**folders) if isinstance(v, str) else v for k, v in data.items()}
    with pytest.raises(ValueError, match=named):
        config = run_config(dataclasses.replace(latents, **filled), model)
        job.train(config, tmp_path / "run", said.append)
    assert not (tmp_path / "run").exists() and said == []


def session(leader: int) -> list[int]:
    """Processes that were started by `leader`, or by one of those, and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(after_name[3]) == leader and after_name[0] != "Z":
            found.append(int(path.name))
    return found


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """A program in a session of its own, as a terminal has: Ctrl-C reaches all of its processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "lit_jax", *command],
        cwd=tiny_runs.ROOT,
        env=tiny_runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
        start_new_session=True,
    )


def assert_all_gone(leader: int) -> None:
    """No process of the session is left, a moment after its leader has ended."""
    deadline = time.monotonic() + 30
    while session(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session(leader) == []


@pytest.mark.slow
def test_run_with_workers_survives_kill_and_interrupt(latents: DataConfig, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    total = {"total_steps": 120, "checkpoint_every": 10}
    tiny_runs.run(arguments(latents, whole, **total))
    expected = reproducible(whole)
    assert len(expected) == 120

    command = arguments(dataclasses.replace(latents, workers=2), broken, **total)
    program = start(command)
    read_until(program, 25)
    assert len(session(program.pid)) >= 3
    program.kill()
    program.communicate()
    assert_all_gone(program.pid)

    last = max(checkpoints(broken))
    for number in (signal.SIGINT, signal.SIGTERM):
        program = start(command)
        read_until(program, last + 2)
        os.killpg(program.pid, number)
        output = tiny_runs.finish(program)  # nothing on stderr
        last = max(checkpoints(broken))
        assert f"stopped on request after step {last}" in output and last < 120
        assert_all_gone(program.pid)
        assert reproducible(broken) == expected[:last]

    program = start(command)
    assert f"resumed at step {last} " in tiny_runs.finish(program)
    assert_all_gone(program.pid)
    assert reproducible(broken) == expected


@pytest.mark.slow
def test_resume_on_another_number_of_processes(latents: DataConfig, tmp_path: Path) -> None:
    """One process with two devices, one with one, and two with one each are the same run."""
    runs: dict[str, tuple[int | None, int | None]] = {
        "one": (2, 2),
        "two_to_one": (None, 1),
        "one_to_two": (2, None),
    }
    traces, params = {}, {}
    for name, hosts in runs.items():
        for total, devices in zip((3, 6), hosts, strict=True):
            command = arguments(
                dataclasses.replace(latents, workers=0 if name == "one" else 1),
                tmp_path / name,
                total_steps=total,
                checkpoint_every=3,
                optimizer__warmup_steps=1,
            )
            if devices is None:
                output = run_on_two_processes(command)[0]
            else:
                output = tiny_runs.run(command, devices=devices)
            assert ("resumed at step 3 " in output) == (total == 6)
        traces[name] = read_trace(tmp_path / name / "metrics.jsonl")
        params[name] = load_model_dir(tmp_path / name)[1]
    for name in runs:
        assert [line["step"] for line in traces[name]] == [1, 2, 3, 4, 5, 6]
        for found, wanted in zip(traces[name], traces["one"], strict=True):
            for key in wanted.keys() - {"clock", "gradient_norm"}:
                np.testing.assert_allclose(found[key], wanted[key], rtol=1e-5, err_msg=key)
        for pair in zip(*map(jax.tree.leaves, (params[name], params["one"])), strict=True):
            np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5)
    assert len({line["mse"] for line in traces["one"]}) == 6
