"""Progress: a line now and then, a bar on a terminal."""

from __future__ import annotations

import io
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from lit_jax.runs.progress import Progress


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Progress, "INTERVAL", 0.0)
    lines: list[str] = []
    with Progress("denoiser", 3, "step", lines.append) as progress:
        for step in range(3):
            progress(step)
    assert [line.split(",")[0] for line in lines] == [
        "  denoiser: 1/3 steps",
        "  denoiser: 2/3 steps",
    ]
    assert all("ETA" in line for line in lines)


def test_quick_work_prints_nothing() -> None:
    lines: list[str] = []
    with Progress("VAE", 2, "image", lines.append) as progress:
        progress()
        progress()
    assert lines == []


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the block waits for steps that a compiled loop has not reported yet."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)

    def body(i: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.callback(progress, i)
        return x + 1

    with Progress("denoiser", 4, "step", lambda text: pytest.fail(text)) as progress:
        jax.jit(lambda x: jax.lax.fori_loop(0, 4, body, x))(jnp.zeros(()))
    assert "denoiser: 100%" in terminal.getvalue() and "4/4" in terminal.getvalue()


def test_work_of_an_earlier_run_does_not_count_in_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Progress("features", 1000, "image", pytest.fail) as progress:
        progress.found(900)
        clock[0] = 1.0  # compilation
        progress.advance(10)
        for _ in range(4):
            clock[0] += 2.0
            progress.advance(10)
        assert progress.speed() == "5 images/s, ETA 10.0 s"
        assert str(progress) == "features: 950/1,000 images, 5 images/s, ETA 10.0 s"


def test_steps_of_a_sampler_count_as_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 images in two batches of 3 steps each."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Progress("denoiser", 12, "image", pytest.fail, steps=6) as progress:
        for step in range(3):
            clock[0] += 1.0
            progress(step)
        assert str(progress) == "denoiser: 6/12 images, 2 images/s, ETA 3.0 s"


def test_lines_are_15_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    lines: list[str] = []
    with Progress("VAE", 100, "image", lines.append) as progress:
        for _ in range(40):
            clock[0] += 1.0
            progress.advance(note="3 skipped")
    assert [line.split()[1] for line in lines] == ["16/100", "31/100"]
    assert all("3 skipped" in line for line in lines)


def test_work_of_an_earlier_run_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("VAE", 10, "image", pytest.fail) as progress:
        progress.found(8)
        progress.advance(2)
    assert "10/10" in terminal.getvalue()
