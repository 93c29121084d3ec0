"""The computed parts of docs/attention.md."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.models.attention import MIXERS
from lit_jax.models.attention.window import circle_mask

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    return importlib.import_module("attention_page")


def test_table_of_costs_is_current(page: Any) -> None:
    text = (ROOT / "docs" / "attention.md").read_text()
    assert text == page.into_page(text), "run: python demo/attention_page.py docs"


def test_every_mixer_has_its_section_and_picture(page: Any) -> None:
    text = (ROOT / "docs" / "attention.md").read_text()
    for name in page.PICTURES:
        assert f"(images/attention_{name}.png)" in text
        assert (ROOT / "docs" / "images" / f"attention_{name}.png").exists()
    assert set(MIXERS) <= set(page.PICTURES)


def test_pictures_show_the_weights(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CLEAR: those of a softmax over the circle and nothing beyond it."""
    monkeypatch.setattr(page, "GRID", (5, 6))
    mixer = page.new_mixer(mixer="window", window_size=3)
    x = page.tokens()
    q, k = (
        np.asarray(projection(x)).reshape(30, page.HEADS, -1) for projection in (mixer.q, mixer.k)
    )
    logits = np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * circle_mask(page.GRID, 3)
    expected = np.mean(weights / weights.sum(-1, keepdims=True), axis=0)
    np.testing.assert_allclose(page.influence(mixer, x), expected, rtol=1e-3, atol=1e-6)
