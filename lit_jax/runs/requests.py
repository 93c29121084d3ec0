"""Request of an output: the same command resumes it, another one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

REQUEST = "request.json"
"""File in an output folder that holds the request."""


def plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request as it comes back from its file: tuples are lists, keys are text."""
    content: dict[str, Any] = json.loads(json.dumps(request))
    return content


def read_request(path: Path, remedy: str) -> dict[str, Any] | None:
    """Return the content of a request file, None if the file does not exist.

    Raises ValueError, with `remedy`, for a damaged file.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (not a JSON object); {remedy}")
    return content


def require_same_request(
    path: Path, request: Mapping[str, Any], remedy: str, ignored: Collection[str] = ()
) -> bool:
    """Return whether the request file `path` exists; raise ValueError, naming every difference,
    when it holds another request.

    Entries in `ignored` ("group.name") are informational and may differ.
    """
    stored = read_request(path, remedy)
    if stored is None:
        return False
    if differing := differences(stored, request, ignored):
        raise ValueError(
            f"{path.parent} belongs to another request: {'; '.join(differing)}; {remedy}"
        )
    return True


def differences(
    stored: Mapping[str, Any], request: Mapping[str, Any], ignored: Collection[str] = ()
) -> list[str]:
    """Return the differences between a stored request and `request`, one text per entry."""
    before, now = _flat(stored), _flat(plain(request))
    return [
        f"{name} is {_short(before.get(name))}, asked for is {_short(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in ignored
    ]


def require_space(out: Path, needed: int, what: str, remedy: str) -> None:
    """Raise ValueError unless `needed` bytes are free on the disk of `out`."""
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{out} needs {needed / 1e9:.3g} GB for {what}, {free / 1e9:.3g} GB are free; {remedy}"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}; entries that are None are left out."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def _short(value: Any) -> str:
    """Return a value as text; hashes and other long texts are cut."""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
