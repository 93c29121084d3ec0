"""The command line in this process: arguments in, the one line of an error out."""

from __future__ import annotations

import sys

import pytest

from lit_jax import __main__ as program
from support import tiny_runs

SCRATCH = "--config=configs/digits_lit.py:scratch"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Runs the program with these arguments."""
    monkeypatch.chdir(tiny_runs.ROOT)
    monkeypatch.setattr(sys, "argv", ["lit_jax", *arguments])
    program.main()


def refusal(monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str]) -> str:
    """Runs a command that is refused and returns its one line."""
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, command, *arguments)
    assert isinstance(end.value.code, str)  # printed on stderr, exit status 1
    assert end.value.code.startswith("error: ") and "\n" not in end.value.code
    assert "Traceback" not in end.value.code
    return end.value.code
