"""CLEAR's recipe in the training job: a softmax teacher's attention is cut to circles, and only the
attention learns to live with it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from configs import common
from lit_jax.commands.train import job
from lit_jax.config import DistillConfig, InheritConfig, ModelSpec, TrainConfig, from_mapping
from lit_jax.training import checkpoint
from lit_jax.training.metrics import read_trace
from support import tiny_runs
from support.models import load_model_dir

# The digits in 4 x 4 tokens: a radius of 6 sees everything, one of 2 nine tokens at most.
SIZE = tiny_runs.SIZE | {"patch_size": 2}
TERMS = ("noise_distillation", "attention_distillation")


@pytest.fixture(scope="module")
def softmax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_model(tmp_path_factory.mktemp("models") / "softmax", **SIZE)


def clear(data_dir: Path, teacher: Path, window: str, **changes: Any) -> TrainConfig:
    """A short run of the recipe on the digits."""
    config = common.base()
    config.model.name = "CLEAR"
    config.model.overrides = ConfigDict(SIZE)
    common.clear(config, window)
    config.distill.teacher = config.inherit.source = str(teacher)
    config.distill.attention_every = 1
    # The teacher is random: its attention is something to learn, its pictures are none.
    config.distill.attention_weight = 50.0
    config.optimizer.learning_rate = 1e-2
    config.data.data_dir = str(data_dir)
    config.batch_size, config.total_steps = 16, 1
    config.log_every = 1
    config.update(changes)
    return from_mapping(TrainConfig, config.to_dict())


def flat(params: Any) -> dict[str, np.ndarray]:
    leaves = traverse_util.flatten_dict(params, sep="/")
    return {path: np.asarray(leaf) for path, leaf in leaves.items()}


def silent(text: str) -> None:
    pass


@pytest.mark.usefixtures("one_device")
def test_a_window_beyond_the_grid_is_the_teacher(
    data_dir: Path, softmax: Path, tmp_path: Path
) -> None:
    config = clear(data_dir, softmax, "r6")
    (line,) = read_trace(job.train(config, tmp_path / "run", silent) / "metrics.jsonl")
    assert all(line[term] < 1e-9 for term in TERMS) and line["mse"] > 1e-2
    assert "variance_distillation" not in line


@pytest.mark.usefixtures("one_device")
def test_training_of_the_attention_brings_it_back(
    data_dir: Path, softmax: Path, tmp_path: Path
) -> None:
    """With pooled tokens, whose weights are new. Everything else stays bit for bit, in the EMA as
    well, and a run that goes on writes the numbers of one that was never interrupted."""
    config = clear(data_dir, softmax, "r2-f2", total_steps=16, checkpoint_every=8)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    lines = read_trace(job.train(config, whole, silent) / "metrics.jsonl")
    losses = [line["attention_distillation"] for line in lines]
    assert losses[0] > 1e-2
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:2])

    shutil.copytree(whole, broken)
    shutil.rmtree(broken / checkpoint.FOLDER / "16")
    said: list[str] = []
    again = read_trace(job.train(config, broken, said.append) / "metrics.jsonl")
    assert any("resumed at step 8" in text for text in said)
    for line, expected in zip(again, lines, strict=True):
        assert {**line, "clock": None} == {**expected, "clock": None}

    source = flat(load_model_dir(softmax)[1])
    states = [stored_state(config, workdir) for workdir in (whole, broken)]
    for part in ("params", "ema"):
        found, other = (flat(getattr(state, part)) for state in states)
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, other[path], err_msg=path)
            if path == "blocks/attn/pool/kernel":
                assert np.any(leaf != 0.25)
            else:
                same = leaf.tobytes() == source[path].tobytes()
                # The bias of all keys shifts the logits of a query alike: little but rounding.
                assert same != path.startswith("blocks/attn/") or path.endswith("k/bias"), path


def stored_state(config: TrainConfig, workdir: Path) -> Any:
    """The last checkpoint, parameters as well as their average."""
    run = job.check(config, workdir, silent)
    with checkpoint.open_manager(workdir, 2, 1) as manager:
        _, state = job.start(run, manager, job.load_teacher(run))
    run.data.close()
    return state


# --- what is refused before anything is compiled or written ---

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "layers": (
        {"depth": 3},
        r"teacher .* has 2 layers, the student 3; .* take a teacher of the student's shape, or set"
        r" distill.attention_weight=0",
    ),
    "channels": (
        {"hidden_size": 32, "num_heads": 4},
        "teacher .* has 16 channels of attention, the student 32;",
    ),
    "tokens": ({"patch_size": 4}, "teacher .* has 16 tokens, the student 4;"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_whose_attention_does_not_correspond(
    data_dir: Path, softmax: Path, tmp_path: Path, case: str
) -> None:
    fields, named = REFUSED[case]
    config = tiny_runs.run_config(
        data_dir,
        model=ModelSpec(name="CLEAR", overrides=SIZE | fields),
        distill=DistillConfig(str(softmax), attention_weight=0.5),
    )
    with pytest.raises(ValueError, match=named):
        job.train(config, tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()
    # Outputs alone can be compared.
    job.check(
        dataclasses.replace(config, distill=DistillConfig(str(softmax))), tmp_path / "run", silent
    ).data.close()


def test_a_run_that_would_train_nothing(data_dir: Path, tmp_path: Path) -> None:
    config = tiny_runs.run_config(data_dir, inherit=InheritConfig(freeze=("^blocks", "^[^b]")))
    with pytest.raises(ValueError, match="matches every parameter: nothing is left to train"):
        job.train(config, tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()
