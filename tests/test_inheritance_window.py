"""A CLEAR student inherits everything of its softmax teacher, and begins as that teacher."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lit_jax.inheritance import inherit
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import abstract_params, apply_fn, init_params
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import model_config
from support.golden_cases import relative_error

SIZE = {"hidden_size": 8, "depth": 1, "num_heads": 2, "input_size": 8}


def drawn(config: Any) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(config)
    return jax.tree.map(lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype("f4"), shapes)


def pair(kind: str, **window: Any) -> tuple[Any, Any, Any]:
    """Teacher and student configuration, and inputs for both."""
    t = np.array([5.0], "f4")
    x = np.random.default_rng(1).normal(size=(1, 8, 8, 4)).astype("f4")
    if kind == "DiT":
        teacher = model_config("DiT", num_classes=3, **SIZE)
        student = model_config("CLEAR", num_classes=3, **SIZE | window)
        return teacher, student, (x, t, np.array([1]))
    text: dict[str, Any] = {"caption_channels": 3, "model_max_length": 2, "qk_norm": True}
    teacher = PixArtConfig(**SIZE, **text)
    student = PixArtConfig(mixer="window", **SIZE, **text, **window)
    cond = TextCondition(np.ones((1, 2, 3), "f4"), np.ones((1, 2), np.int32))
    return teacher, student, (x, t, cond)


@pytest.mark.parametrize("kind", ["DiT", "PixArt"])
def test_a_window_over_the_grid_is_the_teacher(kind: str) -> None:
    teacher, student, inputs = pair(kind, window_size=8)
    given = drawn(teacher)
    own = jax.tree.map(lambda a: a + 1, drawn(student))
    params, report = inherit(student, own, teacher, given, "all")
    assert not report.new and not report.dropped and report.notes == []
    expected = apply_fn(teacher)(given, *inputs)
    assert relative_error(apply_fn(student)(params, *inputs), expected) < 1e-6


@pytest.mark.parametrize("kind", ["DiT", "PixArt"])
def test_pooled_tokens_begin_as_averages(kind: str) -> None:
    """Which a softmax teacher has no weights for; a teacher that has some passes them on."""
    teacher, student, _ = pair(kind, window_size=2, down_factor=2)
    own = init_params(student, jax.random.key(0))
    params, report = inherit(student, own, teacher, drawn(teacher), "all")
    assert set(report.new) == {"blocks/attn/pool/kernel"} and not report.dropped
    assert np.array_equal(params["blocks"]["attn"]["pool"]["kernel"], np.full((1, 2, 2), 0.25))
    assert any(note.startswith("pooled tokens: new") for note in report.notes)

    given = drawn(student)
    params, report = inherit(student, own, student, given, "all")
    assert not report.new and report.notes == []
    kernel = given["blocks"]["attn"]["pool"]["kernel"]
    assert np.array_equal(params["blocks"]["attn"]["pool"]["kernel"], kernel)
