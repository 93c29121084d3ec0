"""The rows of the miniature of the paper's tables: what they share, and the numbers they quote."""

from __future__ import annotations

from typing import Any

import pytest

from configs.digits_roadmap import ROWS as MINIATURE
from configs.digits_roadmap import Row, row_config
from configs.published import ROWS
from lit_jax.config import TrainConfig, from_mapping

# Table of the miniature -> the keys of the config that it is about; row -> what is its own besides.
ABOUT = {
    1: ("model.overrides.mixer", "model.overrides.kernel_size", "model.overrides.kernel_fn"),
    2: ("model.overrides.num_heads",),
    3: ("inherit.source", "inherit.policy"),
    4: ("distill.teacher", "distill.noise_weight", "distill.variance_weight"),
    5: ("model.name", "model.overrides", "inherit", "distill"),
}
OWN = {
    "sana": ("model.overrides.num_heads", "model.overrides.qkv_bias"),
    "window": ("model.name", "model.overrides.window_size"),
    "gated": ("model.name",),
}


def experiment(row: Row) -> TrainConfig:
    return from_mapping(TrainConfig, row_config(row).to_dict())


def without(row: Row, keys: tuple[str, ...]) -> dict[str, Any]:
    config = row_config(row).to_dict()
    for key in keys:
        *groups, last = key.split(".")
        target = config
        for part in groups:
            target = target[part]
        target.pop(last, None)
    return config


@pytest.mark.parametrize("table", ABOUT)
def test_rows_of_the_miniature_differ_in_what_their_table_is_about(table: int) -> None:
    rows = {
        name: MINIATURE[row.same_as] if row.same_as else row
        for name, row in MINIATURE.items()
        if row.table == table
    }
    first = next(iter(rows.values()))
    assert len(rows) > 4
    for name, row in rows.items():
        keys = ABOUT[table] + OWN.get(name, ())
        assert without(row, keys) == without(first, keys), name


def test_siblings_of_the_miniature_start_from_the_teacher() -> None:
    """Untrained rows are the teacher with another attention; CLEAR changes its attention alone."""
    rows = {name: row for name, row in MINIATURE.items() if row.table == 5}
    assert {name for name, row in rows.items() if row.untrained} == {
        "teacher",
        "clear3_untrained",
        "clear2_untrained",
    }
    for name, row in rows.items():
        if not row.same_as:
            config = experiment(row)
            assert config.inherit.source == "runs/roadmap/models/teacher"
            assert (config.inherit.policy == "all") == (name != "dig")
            assert bool(config.distill.teacher) != row.untrained
    assert experiment(MINIATURE["clear2"]).distill.compares_attention
    assert not experiment(MINIATURE["dig"]).distill.compares_attention


def test_the_miniature_quotes_the_same_numbers() -> None:
    """FID of its rows are those of LiT-S/2 in the tables."""
    published = {row.scores.split()[0] for row in ROWS if row.scores}
    quoted = [row.fid for row in MINIATURE.values() if row.fid is not None]
    assert len(quoted) > 25 and {f"{fid:.2f}" for fid in quoted} <= published
