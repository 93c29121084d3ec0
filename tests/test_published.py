"""The published rows, and what is said about them, fit the configs."""

from __future__ import annotations

import re

import pytest

from configs import common, reproduce
from configs.published import ROWS, TABLES
from lit_jax.commands.entry import COMMANDS
from support.config_cases import ARGUMENTS, DRAWN, ENCODE, IMAGENET, ROOT, module


def test_every_argument_is_a_published_row() -> None:
    named = {row.config for row in ROWS}
    files = (*IMAGENET, "clear_imagenet256", "clear_imagenet512")
    assert named == {f"{name}:{argument}" for name in files for argument in ARGUMENTS[name]}
    assert {row.table for row in ROWS} == set(TABLES)
    for row in ROWS:
        scores = [float(score) for score in row.scores.split()]
        assert len(scores) in (0, 1, 4)
        assert all(0 < share < 1 for share in scores[2:])
    known = {(row.table, row.config, row.cfg): row.scores for row in ROWS}
    assert known["6", "lit_imagenet256:XL/2-1.4M", 1.5] == "2.32 265.20 .824 .574"
    assert known["1", "lit_ablation_attention:S/2-relu", 1.0].startswith("88.46")


@pytest.mark.parametrize("name", IMAGENET)
def test_docstring_holds_the_published_numbers_and_hours(name: str) -> None:
    table = reproduce.docstring_table(name)
    assert table in module(name).__doc__, f"paste: python -m configs.reproduce {name}"


def test_page_is_current() -> None:
    written = (ROOT / "docs" / "reproduce.md").read_text()
    remedy = "run: python -m configs.reproduce > docs/reproduce.md"
    assert written == reproduce.page(), remedy


def test_commands_of_the_page_use_flags_and_configs_that_exist() -> None:
    text = reproduce.INTRODUCTION.replace("\\\n", " ")
    commands = re.findall(r"python -m lit_jax (\w+)(.*)", text)
    jobs = {"encode", "train", "sample", "evaluate", "self_generate"}
    assert {job for job, _ in commands} == jobs
    for job, rest in commands:
        command = COMMANDS[job]
        known = {one.flag for one in command.settings} | ({"config"} if command.keys else set())
        assert set(re.findall(r"--(\w+)", rest)) <= known
        for key in re.findall(r"--config\.([\w.]+)=", rest):
            assert key in ("total_steps", "ema.decay", "model")
    for file, argument in re.findall(r"(\w+)\.py:([\w/.+-]+)", text):
        assert argument in (ARGUMENTS | ENCODE | DRAWN)[file]


def test_cost_of_the_largest_run() -> None:
    """DiT-XL/2 takes 118.64 GMACs at 256 px (DiT paper); the student, less in attention, three
    times as much in training, and the teacher once."""
    config = reproduce.build("lit_imagenet256:XL/2-1.4M")
    teacher = reproduce.teacher_config(config)
    assert teacher is not None and teacher.mixer == "softmax" and teacher.hidden_size == 1152
    upper = 4 * 2 * 118.64e9 * 256 * 1_400_000 / (0.4 * 989e12) / 3600
    assert 0.97 * upper < reproduce.training_hours(config) < 1.03 * upper
    assert reproduce.sampling_hours(config, 1.5) == 2 * reproduce.sampling_hours(config, 1.0)
    other = reproduce.teacher_config(reproduce.build("lit_ablation_distillation:S/2-0.1-0"))
    assert other is not None and other.hidden_size == 384
    large = reproduce.teacher_config(reproduce.build("lit_imagenet512:XL/2"))
    assert large is not None and large.input_size == 64


def test_steps_as_the_papers_write_them() -> None:
    assert common.steps_of("400K") == 400_000
    assert common.steps_of("1.4M") == 1_400_000
    assert reproduce.steps_text(1_400_000) == "1.4M"
