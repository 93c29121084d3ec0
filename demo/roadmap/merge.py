"""A part of the roadmap run again: its rows replace those of an earlier report, the others stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.digits_roadmap import ROWS
from demo.roadmap.verdicts import verdicts

# What two reports must have in common for their scores to be comparable.
SHARED: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "protocol": lambda report: report["protocol"],
    "count": lambda report: report["count"],
    "batch_size": lambda report: report["batch_size"],
    "feature_space": lambda report: report["feature_space"],
    "sha256 of the reference": lambda report: report["reference"]["sha256"],
}


def merged(earlier: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """`report` with the rows of `earlier` that it lacks, and the verdicts on all of them.

    Raises ValueError, naming the differences, when their scores cannot be compared.
    """
    values = {key: (of(earlier), of(report)) for key, of in SHARED.items()}
    if texts := [f"{key} {old!r}, now {new!r}" for key, (old, new) in values.items() if old != new]:
        raise ValueError(
            f"rows that were not run again were made with {'; '.join(texts)}; run all rows, or"
            " these with the earlier settings"
        )
    found = {**earlier["rows"], **report["rows"]}
    rows = {}
    for name, row in ROWS.items():
        if measured := found.get(row.same_as or name):
            rows[name] = described(name, measured)
    return {**report, "rows": rows, "verdicts": verdicts(rows)}


def kept(earlier: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Return the rows of `earlier` that `merged` keeps."""
    return [name for name in earlier["rows"] if name in ROWS and name not in report["rows"]]


def described(name: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurement shown for row `name`, which may be another row's run."""
    row = ROWS[name]
    heading = {
        "table": row.table,
        "label": row.label,
        "paper": row.paper,
        "fid": row.fid,
        "same_as": row.same_as,
    }
    return {**heading, **{key: value for key, value in measured.items() if key not in heading}}
