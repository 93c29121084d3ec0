"""Conversion of a mapping to a frozen dataclass: strict keys, strict types, stated limits."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is no row of a table: lists the rows and the nearest one."""
    rows = sorted(known)
    lower = {row.lower(): row for row in rows}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}{hint} (known: {', '.join(rows)})")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


LIMITS: dict[str, Callable[[Any], bool]] = {
    "an integer of at least 1": lambda value: isinstance(value, int) and value >= 1,
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "positive": lambda value: 0 < value < math.inf,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "an integer of at least 2, or None": lambda value: (
        value is None or (isinstance(value, int) and value >= 2)
    ),
    "odd, or None": lambda value: value is None or (value > 0 and value % 2 == 1),
}


def limit(config: Any, bound: str, *keys: str) -> None:
    """Refuse fields outside a row of LIMITS, NaN included. Keys as the user writes them."""
    for key in keys:
        value = getattr(config, key.split(".")[-1])
        require(LIMITS[bound](value), f"{key} is {value!r}; it must be {bound}")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build the dataclass `cls` from a (nested) mapping, strictly; see `typed_fields`."""
    return cls(**typed_fields(cls, values, where))


def typed_fields(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `values` for some fields of the dataclass `cls`, as the types of those fields.

    Raises ValueError for an unknown key (naming the nearest one) and for a value of another type.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise unknown_name(f"key of {where}", key, names)
        arguments[key] = _typed(hints[key], value, f"{where}.{key}")
    return arguments


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint`; integers are accepted where floats are asked for."""
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a group of keys")
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _typed(option, value, where)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, (tuple, list)):
        item = typing.get_args(hint)[0]
        return tuple(_typed(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is tuple and typing.get_args(hint)[0] is type(value) is int:
        return (value,)
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint, type(value)) != (int, bool):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} is {value!r} ({type(value).__name__}); it must be {name}")
