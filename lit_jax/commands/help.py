"""Help texts: one usage block, then the flags in groups, one line each, required ones first."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lit_jax.commands.flags import as_text
from lit_jax.config.settings import Setting


def overview(commands: Mapping[str, Any]) -> str:
    """Return the list of commands."""
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {command.about}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: python -m lit_jax COMMAND [flags]",
            "",
            "commands:",
            *lines,
            "",
            "python -m lit_jax COMMAND --help lists the flags of a command.",
        ]
    )


def of_command(name: str, about: str, settings: Sequence[Setting], keys: Sequence[Setting]) -> str:
    """Return the help of one command. `keys` are those of its configuration file, if it has one."""
    required = [one for one in settings if one.required]
    usage = [f"usage: python -m lit_jax {name}"]
    if keys:
        usage.append("--config configs/X.py[:ARG]")
    usage += [f"--{one.flag} {one.flag.upper()}" for one in required]
    usage.append("[--config.KEY=VALUE ...]" if keys else "[flags]")
    lines = [" ".join(usage), "", f"{about}."]
    groups: dict[str, list[tuple[str, str]]] = {}
    if keys:
        file = "configuration file, with ':ARG' if it takes one"
        groups["required"] = [("--config FILE[:ARG]", file)]
    for one in (*required, *(one for one in settings if not one.required)):
        heading = "required" if one.required else (one.group or "flags")
        groups.setdefault(heading, []).append((f"--{one.flag}", _meaning(one)))
    for one in keys:
        path = ".".join(one.path)
        heading = (
            f"keys of the configuration: {one.path[0]}"
            if len(one.path) > 1
            else "keys of the configuration"
        )
        groups.setdefault(heading, []).append((f"--config.{path}", _meaning(one)))
    for heading, rows in groups.items():
        lines += ["", f"{heading}:", *_columns(rows)]
    return "\n".join(lines)


def table(settings: Sequence[Setting], prefix: str = "") -> str:
    """Return the settings as a Markdown table, for docs/. Those with a prefix are keys."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for one in sorted(settings, key=lambda one: not one.required):
        default = "required" if one.required else f"`{as_text(one.default, one.flag)}`"
        default = "" if default in ("``", "`False`") else default
        flags = [".".join(one.path)] if prefix else [one.flag, *one.aliases]
        names = ", ".join(f"`--{prefix}{name}`" for name in flags)
        rows.append(f"| {names} | {default} | {one.help} |".replace("  |", " |"))
    return "\n".join(rows)


def reference(commands: Mapping[str, Any]) -> str:
    """Return the page with the flags and keys of all commands, docs/flags.md."""
    sections = ["# Flags and keys of all commands", "", "Made by `make docs`."]
    for name, command in commands.items():
        sections += ["", f"## {name}", "", f"{command.about}.", "", table(command.settings)]
        if command.keys:
            sections += ["", f"Keys of the configuration of {name}, as `--config.KEY=VALUE`:", ""]
            sections += [table(command.keys, "config.")]
    return "\n".join([*sections, ""])


def show(text: str) -> None:
    """Print a help text; a reader that closes the pipe, as `head`, is no error."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _meaning(one: Setting) -> str:
    hidden = one.default is False or one.default in ("", None, ()) or isinstance(one.default, dict)
    if one.required or hidden:
        return one.help
    return f"{one.help} [{as_text(one.default, one.flag)}]"


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    columns = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    indent = " " * (width + 4)
    return [
        textwrap.fill(
            f"  {name:{width}}  {meaning}",
            columns,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for name, meaning in rows
    ]
