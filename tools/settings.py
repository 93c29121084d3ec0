"""`--set key=value`: words of the command line <-> fields of an architecture."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def parse_settings(settings: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return `--set key=value` groups as typed values: none, true, false, numbers, HEIGHTxWIDTH,
    lists of integers (1,2,3) and words. `group.key=value` sets one key of a group."""
    values: dict[str, Any] = {}
    for setting in (word for group in settings for word in group):
        key, separator, text = setting.partition("=")
        if not separator or not key or not text:
            raise ValueError(f"--set {setting!r} is not of the form key=value")
        *groups, last = key.split(".")
        place = values
        for name in groups:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {setting!r}: {name} is a value already, not a group")
        place[last] = _value(text)
    return values


def _value(text: str) -> Any:
    if text[0] in "[{(":
        return _literal(text)
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if text.count("x") == 1 and text.replace("x", "").isdigit() and "x" not in (text[0], text[-1]):
        height, width = text.split("x")
        return int(height), int(width)
    if re.fullmatch(r"\d+(,\d+)*,?", text) and "," in text:
        return [int(number) for number in text.split(",") if number]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _literal(text: str) -> Any:
    """Return a list or group as JSON or Python writes it."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    raise ValueError(f"--set: {text!r} is neither JSON nor a Python literal")


def as_settings(fields: Mapping[str, Any], group: str = "") -> dict[str, str]:
    """Return key -> text for every field, so that `parse_settings` gives the fields back."""
    words: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            words |= as_settings(value, f"{group}{name}.")
        else:
            words[group + name] = _text(value, "x" if name == "input_size" else ",")
    return words


def _text(value: Any, between: str) -> str:
    if isinstance(value, (list, tuple)):
        return between.join(map(str, value)) + (between if len(value) == 1 else "")
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
