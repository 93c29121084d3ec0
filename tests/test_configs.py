"""Every experiment file, with every argument it takes, is one that can be run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lit_jax.config import TrainConfig, from_mapping
from lit_jax.diffusion.gaussian import create_process
from lit_jax.inheritance import POLICIES
from lit_jax.models import zoo
from lit_jax.objectives import hybrid_objective
from lit_jax.training.optimizer import SCHEDULES, learning_rate

ROOT = Path(__file__).resolve().parents[1]

# File -> its arguments, () where it takes none. A new file needs a row.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "digits_teacher": (),
    "digits_lit": ("distilled", "inherited", "scratch"),
    "dit_imagenet256": tuple(f"{s}/{p}" for s in ("S", "B", "L", "XL") for p in (2, 4, 8)),
    "lit_imagenet256": ("S/2", "B/2", "L/2", "XL/2"),
}
CASES = [(name, argument) for name, row in ARGUMENTS.items() for argument in row or (None,)]


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def build(name: str, argument: str | None) -> TrainConfig:
    chosen = () if argument is None else (argument,)
    return from_mapping(TrainConfig, module(name).get_config(*chosen).to_dict())


def test_every_file_has_a_row() -> None:
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"common", "__init__"}
    assert files == set(ARGUMENTS)


@pytest.mark.parametrize("name, argument", CASES)
def test_config_builds(name: str, argument: str | None) -> None:
    config = build(name, argument)
    compute = {k: getattr(config.model, k) for k in ("dtype", "remat", "scan_unroll")}
    model = zoo.model_config(config.model.name, **config.model.overrides, **compute)
    assert config.optimizer.schedule in SCHEDULES
    assert float(learning_rate(config.optimizer, config.total_steps)(config.total_steps // 2)) > 0
    assert config.inherit.policy in POLICIES
    assert 0 < config.ema.decay < 1
    hybrid_objective(create_process(), config.distill)
    if "imagenet256" in name and argument is not None:
        assert config.model.name.endswith(f"-{argument}")
        assert (model.image_size, model.in_channels, model.num_classes) == ((32, 32), 4, 1000)
    if "imagenet256" not in name:
        assert (model.image_size, model.in_channels, model.num_classes) == ((8, 8), 1, 10)


@pytest.mark.parametrize("name", [name for name, row in ARGUMENTS.items() if row])
def test_wrong_argument_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="'nonsense' is not one of") as error:
        build(name, "nonsense")
    assert all(argument in str(error.value) for argument in ARGUMENTS[name])
    module(name).get_config()  # without an argument there is a default


@pytest.mark.parametrize("name, row", ARGUMENTS.items())
def test_arguments_differ(name: str, row: tuple[str, ...]) -> None:
    assert len({repr(build(name, argument)) for argument in row}) == len(row)


def test_numbers_of_the_papers() -> None:
    """LiT, section 4 and Table 4; DiT, section 4."""
    for name in ("dit_imagenet256", "lit_imagenet256"):
        config = build(name, "XL/2")
        assert config.batch_size == 256
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 0.0)
        assert (config.optimizer.schedule, config.optimizer.warmup_steps) == ("constant", 0)
        assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
        assert config.data.flip
    student = build("lit_imagenet256", "XL/2")
    assert student.inherit.policy == "all_but_attention" and student.inherit.source
    assert student.distill.teacher
    assert (student.distill.noise_weight, student.distill.variance_weight) == (0.5, 0.05)
    heads = {
        arg: zoo.model_config(build("lit_imagenet256", arg).model.name).num_heads
        for arg in ARGUMENTS["lit_imagenet256"]
    }
    assert heads == {"S/2": 2, "B/2": 3, "L/2": 4, "XL/2": 4}


def test_students_of_the_demo_differ_in_the_recipe_only() -> None:
    """Otherwise their comparison would say nothing."""
    rows: list[dict[str, Any]] = []
    for argument in ARGUMENTS["digits_lit"]:
        config = module("digits_lit").get_config(argument).to_dict()
        source, teacher = config["inherit"].pop("source"), config["distill"].pop("teacher")
        assert (bool(source), bool(teacher)) == (argument != "scratch", argument == "distilled")
        rows.append(config)
    assert rows[0] == rows[1] == rows[2]
