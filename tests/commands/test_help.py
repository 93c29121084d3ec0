"""`--help`: usage, groups and one entry per flag, without importing jax."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from lit_jax import __main__ as program
from lit_jax.commands import help as help_text
from lit_jax.commands.entry import COMMANDS
from support import tiny_runs

WITH_FILE = [name for name, command in COMMANDS.items() if command.place]
HEAVY = ("jax", "flax", "optax", "orbax", "tensorflow", "grain", "matplotlib", "sklearn", "clu")


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the stdout of a call that ends well."""
    monkeypatch.setattr(sys, "argv", ["lit_jax", *words])
    program.main()
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def entries(text: str) -> dict[str, dict[str, str]]:
    """Return heading -> flag -> meaning; continued lines are joined."""
    groups: dict[str, dict[str, str]] = {}
    heading = flag = ""
    for line in text.splitlines()[1:]:
        if line.endswith(":") and not line.startswith(" "):
            heading = line[:-1]
            assert heading not in groups, f"the group {heading!r} is listed twice"
            groups[heading] = {}
        elif line.startswith("  --"):
            flag, _, meaning = re.sub(r"(FILE\[:ARG\])", "", line).strip().partition(" ")
            assert flag not in groups[heading], f"{flag} is listed twice"
            groups[heading][flag] = meaning.strip()
        elif line.startswith("    "):
            groups[heading][flag] += " " + line.strip()
    return groups


def test_overview_lists_every_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(monkeypatch, capsys, "--help").splitlines()
    assert lines[0].startswith("usage: python -m lit_jax COMMAND")
    for name, command in COMMANDS.items():
        assert len([line for line in lines if line.split()[:1] == [name]]) == 1
        assert any(line.startswith(f"  {name} ") and command.about in line for line in lines)


def test_no_command_is_an_error_with_the_overview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_jax"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == help_text.overview(COMMANDS)  # on stderr, exit status 1


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("word", ["--help", "-h", "-help", "--helpfull"])
def test_one_usage_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, word: str
) -> None:
    text = shown(monkeypatch, capsys, name, word)
    assert re.findall("^usage:", text, re.M | re.I) == ["usage:"]
    usage, blank, about = text.splitlines()[:3]
    assert usage.startswith(f"usage: python -m lit_jax {name} ")
    assert (blank, about) == ("", f"{COMMANDS[name].about}.")
    for one in COMMANDS[name].settings:
        assert (f"--{one.flag} " in f"{usage} ") == one.required


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_once_with_default_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    groups = entries(shown(monkeypatch, capsys, name, "--help"))
    command = COMMANDS[name]
    listed = [flag for rows in groups.values() for flag in rows]
    keys = [f"--config.{'.'.join(one.path)}" for one in command.keys]
    assert sorted(listed) == sorted(
        [*(f"--{one.flag}" for one in command.settings), *keys, *(["--config"] if keys else [])]
    )
    meanings = {flag: meaning for rows in groups.values() for flag, meaning in rows.items()}
    assert all(meanings.values()), [flag for flag, meaning in meanings.items() if not meaning]
    for one in command.settings:
        if isinstance(one.default, (int, float)) and not isinstance(one.default, bool):
            assert meanings[f"--{one.flag}"].endswith(f"[{one.default}]")
        if one.required:
            assert "[" not in meanings[f"--{one.flag}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_required_flags_come_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    groups = entries(shown(monkeypatch, capsys, name, "--help"))
    required = {f"--{one.flag}" for one in COMMANDS[name].settings if one.required}
    required |= {"--config"} if COMMANDS[name].place else set()
    assert set(groups.get("required", {})) == required
    if required:
        assert next(iter(groups)) == "required"


def test_flags_stand_in_their_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, command in COMMANDS.items():
        groups = entries(shown(monkeypatch, capsys, name, "--help"))
        for one in command.settings:
            heading = "required" if one.required else (one.group or "flags")
            assert f"--{one.flag}" in groups[heading]
    assert len(entries(shown(monkeypatch, capsys, "sample", "--help"))) > 2


@pytest.mark.parametrize("name", WITH_FILE)
def test_keys_of_the_configuration_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = shown(monkeypatch, capsys, name, "--help")
    assert "--config.KEY=VALUE" in text.splitlines()[0]
    groups = entries(text)
    top = groups["keys of the configuration"]
    for one in COMMANDS[name].keys:
        rows = groups[f"keys of the configuration: {one.path[0]}"] if len(one.path) > 1 else top
        assert f"--config.{'.'.join(one.path)}" in rows


def test_help_wins_over_a_wrong_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(monkeypatch, capsys, "sample", "--stps=3", "--help")
    assert text == shown(monkeypatch, capsys, "sample", "--help")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_a_closed_pipe_is_no_error(words: list[str]) -> None:
    """The reader is gone before the first byte, which is harder than `| head`."""
    code = (
        "import os, runpy, sys; sys.stdin.read()\n"
        f"sys.argv = ['lit_jax', *{words}]\n"
        "runpy.run_module('lit_jax', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tiny_runs.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        assert started.stdin and started.stdout and started.stderr
        started.stdout.close()
        started.stdin.close()  # the program goes on
        errors = started.stderr.read()
        assert (errors, started.wait(timeout=60)) == (b"", 0)


@pytest.mark.parametrize(
    "words", [["--help"], *([name, "--help"] for name in COMMANDS), ["sample", "--num_sampels=3"]]
)
def test_help_and_wrong_flags_do_not_import_jax(words: list[str]) -> None:
    code = (
        "import sys; from lit_jax import __main__ as program\n"
        f"sys.argv = ['lit_jax', *{words}]\n"
        "try: program.main()\n"
        "except SystemExit as end: print(end.code)\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny_runs.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert ("num_samples" if words[-1] == "--num_sampels=3" else "usage:") in ran.stdout


@pytest.mark.parametrize(
    "words, nearest",
    [
        (["sample", "--num_sampels=3"], "num_samples"),
        (["sample", "--stps=3"], "steps"),
        (["sample", "-stps", "3"], "steps"),
        (["generate", "--guidence=3"], "guidance"),
        (["train", "--wrkdir=x"], "workdir"),
    ],
)
def test_unknown_flag_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, words: list[str], nearest: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_jax", *words])
    with pytest.raises(SystemExit) as end:
        program.main()
    message = str(end.value.code)
    assert message.startswith("error: ") and "\n" not in message
    assert words[1].lstrip("-").partition("=")[0] in message and nearest in message
