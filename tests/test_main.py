"""The command line: help, required flags, and what becomes of errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_jax.commands.entry import COMMANDS, HELP
from lit_jax.commands.train import job as train
from support import tiny_runs
from support.command_line import SCRATCH, refusal, run


@pytest.mark.parametrize("name", COMMANDS)
def test_required_flags(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    named = [one.flag for one in COMMANDS[name].settings if one.required]
    if name == "evaluate":  # which ones depends on --self_test
        named = ["reference"]
    if COMMANDS[name].keys:
        named.append("config")
    said = refusal(monkeypatch, name, [])
    assert any(f"--{flag}" in said for flag in named)


def test_every_command_can_be_loaded() -> None:
    for name, command in COMMANDS.items():
        assert command.load().__name__ == name


def test_unknown_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unknown command 'trian'; did you mean 'train'?" in refusal(monkeypatch, "trian", [])


@pytest.mark.parametrize("word", sorted(HELP))
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    run(monkeypatch, word)
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m lit_jax COMMAND")
    assert all(f"  {name} " in text and row.about in text for name, row in COMMANDS.items())
    # Without any word the same text is an error.
    with pytest.raises(SystemExit) as end:
        run(monkeypatch)
    assert end.value.code == text.removesuffix("\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Every form of --help prints the same text, with all flags and keys, beside other flags."""
    texts = set()
    for word in HELP:
        run(monkeypatch, name, "--nonsense=1", word)
        texts.add(capsys.readouterr().out)
    (text,) = texts
    command = COMMANDS[name]
    assert text.startswith(f"usage: python -m lit_jax {name} ") and command.about in text
    usage = text.split("\n")[0]
    assert all(f"--{one.flag} " in usage for one in command.settings if one.required)
    words = text.split()
    assert all(f"--{one.flag}" in words for one in command.settings)
    assert all(f"--config.{'.'.join(one.path)}" in words for one in command.keys)
    assert ("--config" in words) == bool(command.keys)
    assert max(map(len, text.split("\n")[1:])) <= 120


def raising(error: Exception) -> Callable[..., None]:
    def command(*given: Any) -> None:
        raise error

    return command


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ValueError from inside a library is no message to the user."""
    arguments = ["train", SCRATCH, "--workdir=x"]
    for error in (ValueError("from outside"), TypeError("bug")):
        monkeypatch.setattr(train, "train", raising(error))
        with pytest.raises(type(error), match=str(error)):
            run(monkeypatch, *arguments)
    monkeypatch.setattr(train, "train", raising(FloatingPointError("step 3")))
    with pytest.raises(SystemExit, match="error: step 3"):
        run(monkeypatch, *arguments)
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return {}.nothing\n")
    with pytest.raises(AttributeError, match="nothing"):
        run(monkeypatch, "train", f"--config={broken}", "--workdir=x")


def program(code: list[str], **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code],
        cwd=tiny_runs.ROOT,
        env=tiny_runs.environment(8, **extra),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "flags, named",
    [
        ([SCRATCH, "--config.sed=1"], 'Did you mean "seed"'),
        (["--config=configs/nothing.py"], "No such file"),
        ([SCRATCH, "--config.batch_size=12"], "batch_size 12 is not divisible by 8 devices"),
    ],
)
def test_real_program_says_one_line(tmp_path: Path, flags: list[str], named: str) -> None:
    run = program(["-m", "lit_jax", "train", *flags, f"--workdir={tmp_path / 'run'}"])
    assert run.returncode == 1
    assert named in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


LIGHT = (
    "heavy = {'jax', 'flax', 'orbax', 'tensorflow', 'grain'} & set(sys.modules)\n"
    "assert not heavy, heavy"
)


def test_flags_are_checked_without_jax() -> None:
    """That is what makes the answer quick."""
    code = (
        "import sys; from lit_jax import __main__ as program\n"
        f"sys.argv = ['lit_jax', 'train', '{SCRATCH}', '--workdir=x', '--config.sed=1']\n"
        "try: program.main()\n"
        "except SystemExit as end: assert 'seed' in end.code\n"
        "else: raise AssertionError('not refused')\n"
    )
    run = program(["-c", code + LIGHT])
    assert run.returncode == 0, run.stderr


def test_help_without_jax() -> None:
    code = (
        "import sys; from lit_jax import __main__ as program\n"
        "for command in ('', 'train', 'sample', 'evaluate'):\n"
        "    sys.argv = ['lit_jax', *command.split(), '--help']\n"
        "    program.main()\n"
    )
    run = program(["-c", code + LIGHT])
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert run.stdout.count("usage: ") == 4


def test_cluster_that_is_not_there() -> None:
    """It must not be taken for a run on one host."""
    run = program(["-m", "lit_jax", "train", SCRATCH, "--workdir=x"], LIT_JAX_DISTRIBUTED="1")
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert "no cluster to join" in run.stderr and "JAX_COORDINATOR_ADDRESS" in run.stderr
