"""What the training job refuses before anything is compiled or written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_jax.commands.train import job
from lit_jax.config import DistillConfig, GridConfig, InheritConfig, OptimizerConfig
from support import tiny_runs

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"batch_size": 12}, "batch_size 12 is not divisible by 8 devices x 1"),
    "accumulation": (
        {"optimizer": OptimizerConfig(accumulation=2)},
        "batch_size 8 is not divisible by 8 devices x 2 accumulation steps = 16",
    ),
    "missing teacher": (
        {"distill": DistillConfig(teacher="nowhere")},
        "nowhere is not a model folder or training workdir",
    ),
    "unequal teacher": (
        {"distill": DistillConfig(teacher="{big}")},
        r"big has image_size=\(16, 16\), the student \(8, 8\)",
    ),
    "unequal source": (
        {"inherit": InheritConfig(source="{wide}")},
        r"cannot be inherited:.*student \(4, 4, 1, 16\), teacher \(4, 4, 1, 32\)",
    ),
    "policy": (
        {"inherit": InheritConfig(source="{big}", policy="al")},
        "unknown inheritance policy 'al'; did you mean 'all'",
    ),
    "freeze": ({"inherit": InheritConfig(freeze=("nothing",))}, "'nothing' matches no parameter"),
    "grids": ({"sample": GridConfig(every=1, sampler="dpm")}, "unknown sampler 'dpm'"),
    "schedule": ({"optimizer": OptimizerConfig(schedule="cos")}, "unknown optimizer.schedule"),
    "reading": (
        {"distill": DistillConfig(teacher="{big}", variance_reading="sigma")},
        "unknown variance reading 'sigma'",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("other_models")
    return {
        "big": str(tiny_runs.save_model(path / "big", input_size=16)),
        "wide": str(tiny_runs.save_model(path / "wide", hidden_size=32)),
    }


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_run_is_refused_before_anything_happens(
    data_dir: Path, folders: dict[str, str], tmp_path: Path, case: str
) -> None:
    changes, named = REFUSED[case]
    filled = {}
    for name, value in changes.items():
        if dataclasses.is_dataclass(value):
            texts = {k: v for k, v in vars(value).items() if isinstance(v, str)}
            value = dataclasses.replace(value, **{k: v.format(**folders) for k, v in texts.items()})
        filled[name] = value
    said: list[str] = []
    with pytest.raises(ValueError, match=f"(?s){named}"):
        job.train(tiny_runs.run_config(data_dir, **filled), tmp_path / "run", said.append)
    assert not (tmp_path / "run").exists() and said == []


def test_workdir_of_another_model_is_refused(data_dir: Path, tmp_path: Path) -> None:
    tiny_runs.save_model(tmp_path / "model", "LiT", hidden_size=32)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"another model: hidden_size=32 \(config: 16\)"):
        job.train(tiny_runs.run_config(data_dir), tmp_path / "run", lambda text: None)
    assert sorted(tmp_path.rglob("*")) == before


def test_workdir_that_is_no_path_is_refused(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="workdir gs:/bucket/run is no path of a mounted"):
        job.train(tiny_runs.run_config(data_dir), "gs://bucket/run", lambda text: None)
    assert not Path("gs:").exists()
