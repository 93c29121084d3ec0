"""A line now and then, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import jax
import jax.numpy as jnp
import pytest

from lit_jax.runs.progress import Bar


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bar, "INTERVAL", 0.0)
    said: list[str] = []
    with Bar("denoiser", 3, "step", said.append) as bar:
        for step in range(3):
            bar(step)
    assert [line.split(",")[0] for line in said] == [
        "  denoiser: 1/3 steps",
        "  denoiser: 2/3 steps",
    ]
    assert all("ETA" in line for line in said)


def test_quick_work_is_not_worth_a_word() -> None:
    said: list[str] = []
    with Bar("VAE", 2, "image", said.append) as bar:
        bar()
        bar()
    assert said == []


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the steps that a compiled loop still has to report."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)

    def body(i: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.callback(bar, i)
        return x + 1

    with Bar("denoiser", 4, "step", lambda text: pytest.fail(text)) as bar:
        jax.jit(lambda x: jax.lax.fori_loop(0, 4, body, x))(jnp.zeros(()))
    assert "denoiser: 100%" in terminal.getvalue() and "4/4" in terminal.getvalue()
