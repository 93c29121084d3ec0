"""Flags of a command, derived from its configuration, and the errors of a wrong command line.

Free of jax, so that a slip of the keyboard is answered at once.
"""

from __future__ import annotations

import difflib
import re
import sys
import traceback
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from lit_jax.config.settings import Setting

# Experiment files import from `configs`, wherever the command is run.
REPOSITORY = str(Path(__file__).resolve().parents[2])

CACHE = Setting(
    (),
    "compilation_cache",
    (),
    str,
    "",
    "common",
    "folder of compiled programs, or off; default: in the user's cache folder",
)


def declare(settings: Sequence[Setting], config_file: bool = False) -> flags.FlagValues:
    """Return the flags of these settings, not parsed yet; `config_file` adds --config."""
    declared = flags.FlagValues()
    if config_file:
        config_flags.DEFINE_config_file("config", None, "", flag_values=declared)
        flags.mark_flag_as_required("config", flag_values=declared)
    for one in settings:
        default = None if one.required else one.default
        if one.hint is bool:
            flags.DEFINE_boolean(one.flag, default, one.help, flag_values=declared)
        elif one.hint is int:
            flags.DEFINE_integer(one.flag, default, one.help, flag_values=declared)
        elif one.hint is float:
            flags.DEFINE_float(one.flag, default, one.help, flag_values=declared)
        else:
            text = None if one.required else as_text(default, one.flag)
            flags.DEFINE_string(one.flag, text, one.help, flag_values=declared)
        for alias in one.aliases:
            flags.DEFINE_alias(alias, one.flag, flag_values=declared)
        if one.required:
            flags.mark_flag_as_required(one.flag, flag_values=declared)
    return declared


def parse(declared: flags.FlagValues, argv: Sequence[str]) -> None:
    """Give the flags their values. `argv` starts with the name of the program, as `sys.argv`, where
    ml_collections looks up overrides (`--config.x.y=v`).

    Raises ValueError, with one line that names the flag, for anything wrong on the command line.
    """
    if REPOSITORY not in sys.path:
        sys.path.append(REPOSITORY)
    try:
        rest = declared(argv)[1:]
        if "config" in declared:
            # A file that could not be read complains on first use only.
            declared.config.lock()
    except (AttributeError, KeyError) as error:
        if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise  # a bug in the config file
        raise ValueError(_missing_key(error)) from error
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(declared), n=1)
        hint = f". Did you mean: {near[0]} ?" if near else "; --help lists the flags"
        raise ValueError(f"Unknown command line flag {error.flagname!r}{hint}") from error
    except flags.Error as error:
        # Quotes the traceback of a config file that raises, whose last line is the message.
        first, _, trace = str(error).partition("Error whilst parsing config file:")
        last = trace.strip().split("\n")[-1].strip().removeprefix("ValueError: ")
        raise ValueError(first + last) from error
    except OSError as error:
        raise ValueError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    if rest:
        raise ValueError(f"{' '.join(rest)!r} belongs to no flag; write --flag VALUE, lists as 1,2")


def values(declared: flags.FlagValues, settings: Sequence[Setting]) -> dict[tuple[str, ...], Any]:
    """Return the values of parsed flags by the path of their setting, in the types of its field."""
    return {one.path: _typed(one, getattr(declared, one.flag)) for one in settings}


def as_text(value: Any, flag: str = "") -> str:
    """Return a value as it is written on the command line."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ("x" if flag == "size" else ",").join(map(str, value))
    return str(value)


def _typed(one: Setting, value: Any) -> Any:
    """Return the value of a flag as its field holds it. Raises ValueError with the expected
    form."""
    if one.hint in (bool, int, float, str):
        return value
    kinds = [hint for hint in _options(one.hint) if typing.get_origin(hint) is tuple]
    optional = type(None) in _options(one.hint)
    if optional and not value:
        return None
    items = typing.get_args(kinds[0])
    if one.flag == "size":
        found = re.fullmatch(r"(\d+)[xX](\d+)", value.strip())
        if found is None:
            raise ValueError(f"--size {value!r} is not of the form HEIGHTxWIDTH, as 768x1344")
        return int(found[1]), int(found[2])
    try:
        numbers = tuple(items[0](part.strip()) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"--{one.flag} {value!r}: {error}") from error
    if items[-1] is not Ellipsis and len(numbers) != len(items):
        raise ValueError(f"--{one.flag} {value!r} is not of the form LOW,HIGH")
    return numbers


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _missing_key(error: Any) -> str:
    """Return the message of ml_collections for a key that does not exist; it names the nearest
    one."""
    while isinstance(error, Exception):
        error = error.args[0]
    return f"--config has no key {error}" if error.startswith("'") else f"--config: {error}"
