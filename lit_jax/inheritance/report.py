"""The report of an inheritance: where every parameter went, and remarks for the reader."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_jax.models.registry import DenoiserConfig, roles_of


@dataclass
class InheritanceReport:
    """Origin of every parameter: path -> number of scalars.

    `inherited` and `new` together are the student (a partly inherited label table is in both);
    `frozen` names the student's parameters, of either kind, that training must not change;
    `inherited` and `dropped` together are the teacher. `notes` are remarks for the reader.
    """

    policy: str
    inherited: dict[str, int] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, int]:
        """Scalars per group, and of the student."""
        groups = ("inherited", "new", "frozen", "dropped")
        sums = {group: sum(getattr(self, group).values()) for group in groups}
        return sums | {"student": sums["inherited"] + sums["new"]}

    def to_json(self) -> str:
        """Return the report as JSON, sorted."""
        return json.dumps(
            dataclasses.asdict(self) | {"totals": self.totals}, indent=2, sort_keys=True
        )

    def table(self) -> str:
        """Return the report as lines of text, one per parameter, totals last."""
        paths = list(dict.fromkeys([*self.inherited, *self.new, *self.dropped]))
        width = max(map(len, paths), default=4)
        header = f"{'path':{width}}  {'inherited':>12}{'new':>12}{'frozen':>12}{'dropped':>12}"
        groups = (self.inherited, self.new, self.frozen, self.dropped)
        lines = [f"inheritance policy: {self.policy}", header, "-" * len(header)]
        for path in paths:
            counts = (f"{group[path]:,}" if path in group else "." for group in groups)
            lines.append(f"{path:{width}}  " + "".join(f"{count:>12}" for count in counts))
        sums = self.totals
        total = "".join(
            f"{sums[group]:>12,}" for group in ("inherited", "new", "frozen", "dropped")
        )
        lines += ["-" * len(header), f"{'total':{width}}  {total}"]
        lines.append(f"student: {sums['student']:,} = inherited + new; dropped is of the teacher")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def remarks(
    report: InheritanceReport,
    student: DenoiserConfig,
    teacher: DenoiserConfig,
    chosen: Sequence[str],
) -> list[str]:
    roles = roles_of(student)
    notes = roles.notes(student, teacher)
    if roles.labels:
        notes += _label_notes(report, roles.labels, student, teacher)
    if report.policy == "all" and roles.pooled in report.new:
        notes.append(
            "pooled tokens: new, the teacher has none; each is the average of its patch at first"
        )
    inside = any(re.match(roles.attention, path) for path in chosen)
    if inside and student.num_heads != teacher.num_heads:
        notes.append(
            f"attention projections: {teacher.num_heads} heads in the teacher, {student.num_heads}"
            " in the student; rows of the whole matrix are inherited"
        )
    return notes


def _label_notes(report: InheritanceReport, labels: str, student: Any, teacher: Any) -> list[str]:
    if labels in report.inherited and labels in report.new:
        rows = report.inherited[labels] // student.hidden_size
        total = rows + report.new[labels] // student.hidden_size
        return [
            f"label table: partly inherited, {rows} of {total} rows (teacher has"
            f" {teacher.num_classes} classes, student {student.num_classes})"
        ]
    if student.num_classes and not teacher.num_classes:
        return ["label table: new, the teacher is unconditional"]
    if teacher.num_classes and not student.num_classes:
        return ["label table: dropped, the student is unconditional"]
    return []
