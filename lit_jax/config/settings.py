"""`setting`: a field of a command's configuration, with what its flag and its documentation need.

A setting is declared once, as a field of a frozen dataclass. Flags, `--help`, the recorded request
and the tables in docs/ derive from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def setting(default: Any = dataclasses.MISSING, *, help: str, **options: Any) -> Any:
    """Return a dataclass field with its help text; without `default` the setting is required.

    options: `group`, the heading in `--help`; `aliases`, older flag names that keep working;
    `recorded=False` for a setting that changes the speed and never the result, which a resumed
    job may change; `choices`, the names to choose from.
    """
    unknown = options.keys() - {"group", "aliases", "recorded", "choices"}
    if unknown:
        raise TypeError(f"setting() got unknown options {sorted(unknown)}")
    metadata = {"help": help, **options}
    if isinstance(default, (list, dict, set)):
        raise TypeError(f"default {default!r} is mutable; use a tuple")
    return dataclasses.field(default=default, metadata=metadata)


def about(field: dataclasses.Field[Any]) -> Mapping[str, Any]:
    """Return the metadata of a setting: `help` and the options given to `setting`."""
    return field.metadata
