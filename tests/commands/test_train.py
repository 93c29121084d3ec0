"""The training job: runs that are killed, runs that fail, runs on several processes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lit_jax import sharding
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.train import callbacks as train_callbacks
from lit_jax.commands.train import job
from lit_jax.config import GridConfig, InheritConfig
from lit_jax.training.metrics import read_trace
from support import tiny_runs
from support.models import load_model_dir
from support.train_runs import (
    AHEAD,
    EVERY,
    TOTAL,
    checkpoints,
    experiment,
    read_until,
    reproducible,
    run_on_two_processes,
)


@pytest.mark.slow
def test_killed_and_stopped_run_equals_an_uninterrupted_one(data_dir: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "from scratch" in tiny_runs.run(experiment(data_dir, whole))
    expected = reproducible(whole)
    assert [json.loads(line)["step"] for line in expected] == list(range(1, TOTAL + 1))

    moment = random.Random()
    killed_at, pause = moment.randint(2 * EVERY + 1, 60), moment.uniform(0, 0.05)
    print(f"SIGKILL {pause:.3f} s after step {killed_at}")
    program = tiny_runs.start(experiment(data_dir, broken))
    read_until(program, killed_at)
    time.sleep(pause)
    program.kill()
    program.communicate()
    assert program.returncode == -signal.SIGKILL
    last = max(checkpoints(broken))
    assert EVERY <= last <= killed_at + AHEAD
    assert killed_at <= len(reproducible(broken)) <= killed_at + AHEAD

    program = tiny_runs.start(experiment(data_dir, broken))
    stopped_at = last + moment.randint(2, 10)
    print(f"resumed from {last}, SIGTERM after step {stopped_at}")
    read_until(program, stopped_at)
    program.send_signal(signal.SIGTERM)
    output = tiny_runs.finish(program)
    stop = max(checkpoints(broken))
    assert f"stopped on request after step {stop}" in output
    assert stopped_at <= stop < TOTAL
    assert reproducible(broken) == expected[:stop]

    output = tiny_runs.run(experiment(data_dir, broken))
    assert f"resumed at step {stop} " in output and f"step {stop}/" not in output
    assert reproducible(broken) == expected
    assert checkpoints(broken) == [TOTAL - EVERY, TOTAL]
    assert len(list((broken / "checkpoints").iterdir())) == 2  # nothing unfinished is left over
    (_, params), (_, wanted) = map(load_model_dir, (broken, whole))
    for found, array in zip(*map(jax.tree.leaves, (params, wanted)), strict=True):
        np.testing.assert_array_equal(found, array)

    before = {path: path.stat().st_mtime_ns for path in broken.rglob("*") if path.is_file()}
    output = tiny_runs.run(experiment(data_dir, broken))
    assert f"nothing to do: total_steps is {TOTAL}, step {TOTAL} is reached" in output
    assert {p: p.stat().st_mtime_ns for p in broken.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_two_processes_equal_one(data_dir: Path, teacher: Path, tmp_path: Path) -> None:
    """A distilled, inherited run with sample grids, on 1 x 2 and on 2 x 1 devices."""
    settings = {
        "total_steps": 3,
        "checkpoint_every": 2,
        "inherit__source": teacher,
        "distill__teacher": teacher,
        "sample__every": 2,
        "sample__steps": "ddim2",
        "sample__count": 4,
        "sample__cfg_scale": 1.0,
        "optimizer__warmup_steps": 1,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = experiment(data_dir, one, **settings)
    arguments[1] = arguments[1].replace("scratch", "distilled")
    output = tiny_runs.run(arguments, devices=2)
    assert f"inherited from {teacher} with policy 'all_but_attention'" in output

    arguments[2] = f"--workdir={two}"
    outputs = run_on_two_processes(arguments)
    assert "step 3/3" in outputs[0] and "step 3/3" not in outputs[1]

    traces = [read_trace(workdir / "metrics.jsonl") for workdir in (one, two)]
    assert [line["step"] for line in traces[0]] == [line["step"] for line in traces[1]] == [1, 2, 3]
    assert {"noise_distillation", "variance_distillation"} < traces[0][0].keys()
    for first, second in zip(*traces, strict=True):
        for name in first.keys() - {"clock", "gradient_norm"}:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-5, err_msg=name)
    (_, params), (_, wanted) = map(load_model_dir, (two, one))
    for found, array in zip(*map(jax.tree.leaves, (params, wanted)), strict=True):
        np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-5)

    for workdir in (one, two):
        assert checkpoints(workdir) == [2, 3]
        report = json.loads((workdir / "inheritance.json").read_text())
        assert report["policy"] == "all_but_attention"
        assert "blocks/attn/q/kernel" in report["new"]
        assert "blocks/mlp/fc1/kernel" in report["inherited"]
        saved = json.loads((workdir / "config.json").read_text())
        assert saved["train"]["distill"]["teacher"] == str(teacher)
        assert saved["model"]["mixer"] == "linear"
        assert [path.name for path in (workdir / "samples").iterdir()] == ["0000002.png"]
    grids = [np.asarray(Image.open(w / "samples/0000002.png")).astype(int) for w in (one, two)]
    assert np.abs(grids[0] - grids[1]).max() <= 1


def spoiled(tmp_path: Path, path: str, block: int, value: float) -> str:
    """An unconditional model folder with one block's parameter replaced by `value`."""
    config, params = load_model_dir(tiny_runs.save_model(tmp_path / "good", num_classes=0))
    group, layer, name = path.split("/")
    params["blocks"][group][layer][name][block] = value
    save_model_dir(tmp_path / "source", config, params, {})
    return str(tmp_path / "source")


def last_good(workdir: Path, run: Any) -> tuple[list[int], dict[str, Any]]:
    """Steps on disk, and the latest state."""
    with job.checkpoint.open_manager(workdir, 2, 1) as manager:
        _, state = job.start(dataclasses.replace(run, log=lambda text: None), manager, {})
    return checkpoints(workdir), {"params": state.params, "opt_state": state.opt_state}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("case", ["overflow", "parameter", "batch"])
def test_nonfinite_run_stops_with_the_place_and_a_good_checkpoint(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    workdir, source = tmp_path / "run", ""
    said: list[str] = []
    if case == "overflow":
        source = spoiled(tmp_path, "mlp/fc2/kernel", 1, 3e38)
        named = "step 1: .* first non-finite value in block 1 of 2"
    elif case == "parameter":
        source = spoiled(tmp_path, "mlp/fc1/kernel", 1, np.nan)
        named = "step 1: loss nan.* in parameter blocks/mlp/fc1/kernel of block 1"
    else:
        place, count = sharding.place_batch, iter(range(1, 100))

        def poisoned(batch: Any, mesh: Any) -> Any:
            image = batch["image"] * (np.nan if next(count) == 3 else 1)
            return place({**batch, "image": image}, mesh)

        monkeypatch.setattr(sharding, "place_batch", poisoned)
        named = r"step 3: .* in the batch \(x_start\)"
    config = tiny_runs.run_config(data_dir, num_classes=0, inherit=InheritConfig(source=source))
    with pytest.raises(FloatingPointError, match=named) as error:
        job.train(config, workdir, said.append)
    assert str(workdir) in str(error.value)

    good = 2 if case == "batch" else 0
    lines = read_trace(workdir / "metrics.jsonl") if good else []
    assert [line["step"] for line in lines] == list(range(1, good + 1))
    if good:
        steps, state = last_good(workdir, job.check(config, workdir, said.append))
        assert max(steps) == good
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    else:
        assert checkpoints(workdir) == []


@pytest.mark.usefixtures("one_device")
def test_resuming_with_another_seed_is_refused(data_dir: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = tiny_runs.run_config(data_dir, num_classes=0, total_steps=1)
    job.train(config, tmp_path / "run", said.append)
    before = sorted(tmp_path.rglob("*"))
    other = dataclasses.replace(config, seed=1, total_steps=2)
    with pytest.raises(ValueError, match="checkpoint 1 cannot be continued: .* seed 0, now 1"):
        job.train(other, tmp_path / "run", said.append)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("one_device")
def test_unconditional_model_trains(data_dir: Path, tmp_path: Path) -> None:
    """With grids, although there is no null class to guide away from."""
    config = tiny_runs.run_config(
        data_dir,
        num_classes=0,
        total_steps=1,
        sample=GridConfig(every=1, count=2, steps="ddim2", cfg_scale=1.5),
    )
    job.train(config, tmp_path / "run", lambda text: None)
    assert len(read_trace(tmp_path / "run" / "metrics.jsonl")) == 1
    assert (tmp_path / "run/samples/0000001.png").exists()


def test_stop_is_agreed_upon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are told at different moments, but a checkpoint needs all at the same step."""
    before = signal.getsignal(signal.SIGTERM)
    stop = train_callbacks.StopRequest()
    stop.agree(1, 10)
    assert not stop.agreed
    os.kill(os.getpid(), signal.SIGTERM)
    stop.agree(1, 10)
    assert stop.requested and stop.agreed
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) == before

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        train_callbacks.multihost_utils, "process_allgather", lambda own: np.stack([own, True])
    )
    other = train_callbacks.StopRequest()
    other.agree(9, 10)
    assert not other.agreed
    other.agree(10, 10)
    assert other.agreed and not other.requested
    other.restore()
