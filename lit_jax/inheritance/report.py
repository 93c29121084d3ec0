"""The report of an inheritance: where every parameter went, and remarks for the reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_jax.inheritance.policies import LABELS, POOLED
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig, LabelledConfig


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
    notes = []
    if isinstance(student, PixArtConfig) and isinstance(teacher, PixArtConfig):
        notes += _scale_notes(student, teacher)
    elif student.grid != teacher.grid:
        (a, b), (c, d) = teacher.grid, student.grid
        notes.append(f"position table: analytic, recomputed from {a}x{b} to {c}x{d} tokens")
    if isinstance(student, LabelledConfig) and isinstance(teacher, LabelledConfig):
        notes += _label_notes(report, student, teacher)
    if report.policy == "all" and POOLED in report.new:
        notes.append(
            "pooled tokens: new, the teacher has none; each is the average of its patch at first"
        )
    if any(p.startswith("blocks/attn/") for p in chosen) and student.num_heads != teacher.num_heads:
        notes.append(
            f"attention projections: {teacher.num_heads} heads in the teacher, {student.num_heads}"
            " in the student; rows of the whole matrix are inherited"
        )
    return notes


def _scale_notes(student: PixArtConfig, teacher: PixArtConfig) -> list[str]:
    """Return how the scaled position table of a text-to-image network changes: nothing is
    resampled."""
    if (student.grid, student.pe_interpolation) == (teacher.grid, teacher.pe_interpolation):
        return []
    old, new = (
        f"{config.grid[0]}x{config.grid[1]} tokens at pe_interpolation {config.pe_interpolation:g}"
        for config in (teacher, student)
    )
    note = f"position table: analytic, recomputed from {old} to {new}"
    spans = [
        tuple(side / config.pe_interpolation for side in config.grid)
        for config in (teacher, student)
    ]
    if spans[0] != spans[1]:
        was, now = ("x".join(f"{side:g}" for side in span) for span in spans)
        note += f"; positions span {now} instead of {was}, so the student sees other codes"
    return [note]


def _label_notes(
    report: InheritanceReport, student: LabelledConfig, teacher: LabelledConfig
) -> list[str]:
    if LABELS in report.inherited and LABELS in report.new:
        rows = report.inherited[LABELS] // student.hidden_size
        total = rows + report.new[LABELS] // student.hidden_size
        return [
            f"label table: partly inherited, {rows} of {total} rows (teacher has"
            f" {teacher.num_classes} classes, student {student.num_classes})"
        ]
    if student.num_classes and not teacher.num_classes:
        return ["label table: new, the teacher is unconditional"]
    if teacher.num_classes and not student.num_classes:
        return ["label table: dropped, the student is unconditional"]
    return []
