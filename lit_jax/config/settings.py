"""`setting`: a field of a command's configuration, with what its flag and its documentation need.

A setting is declared once, as a field of a frozen dataclass. Flags, `--help`, the recorded request
and the tables in docs/ derive from it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

C = TypeVar("C")
MISSING = dataclasses.MISSING


def setting(default: Any = dataclasses.MISSING, *, help: str, **options: Any) -> Any:
    """Return a dataclass field with its help text; without `default` the setting is required.

    options: `group`, the heading in `--help`; `flag`, the name of the flag where it is not that of
    the field; `aliases`, older flag names that keep working.
    """
    unknown = options.keys() - {"group", "flag", "aliases"}
    if unknown:
        raise TypeError(f"setting() got unknown options {sorted(unknown)}")
    metadata = {"help": help, **options}
    if isinstance(default, (list, dict, set)):
        raise TypeError(f"default {default!r} is mutable; use a tuple")
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """A setting of a command: the path of its field in the configuration, and its flag."""

    path: tuple[str, ...]
    flag: str
    aliases: tuple[str, ...]
    hint: Any
    default: Any
    group: str
    help: str

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


def settings_of(cls: type, skip: Collection[str] = ()) -> list[Setting]:
    """Return the settings of a configuration class, those of nested groups in their place.

    `skip` are flags to leave out. A nested group takes its defaults from the field that holds it.
    """
    return [one for one in _walk(cls, (), None) if one.flag not in skip]


def _walk(cls: type, path: tuple[str, ...], instance: Any) -> Iterator[Setting]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default if instance is None else getattr(instance, field.name)
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(hints[field.name]):
            group = None if default is MISSING else default
            yield from _walk(hints[field.name], (*path, field.name), group)
        else:
            about = field.metadata
            yield Setting(
                (*path, field.name),
                about.get("flag", field.name),
                tuple(about.get("aliases", ())),
                hints[field.name],
                default,
                about.get("group", ""),
                about["help"],
            )


def build(cls: type[C], values: Mapping[tuple[str, ...], Any]) -> C:
    """Return the configuration with these values; path of a field -> value, defaults elsewhere."""
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = {path[1:]: v for path, v in values.items() if path[0] == field.name}
            if inner:
                base = field.default if field.default is not dataclasses.MISSING else hint()  # type: ignore[operator]
                flat = {path[0]: value for path, value in inner.items()}
                arguments[field.name] = dataclasses.replace(base, **flat)
        elif (field.name,) in values:
            arguments[field.name] = values[(field.name,)]
    return cls(**arguments)
