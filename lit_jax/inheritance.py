"""Weight inheritance: which parameters a student takes over from a trained teacher.

LiT paper, section 3.3 and Table 3: a linear student keeps everything of its softmax teacher except
the self-attention, and optionally some of the attention's projections. Projections are inherited
as rows of the whole D x D matrix, so the two head counts need not agree. The self-attention of a
text-to-image network includes its key/value compression; its cross-attention is inherited.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lit_jax.config import DenoiserConfig, DiTConfig, PixArtConfig, unknown_name

Params = dict[str, Any]
Array = jax.Array | np.ndarray
Shape = tuple[int, ...]

_OUTSIDE = r"(?!blocks/attn/|kv_compress/).+"


def _and_projections(*names: str) -> str:
    return rf"{_OUTSIDE}|blocks/attn/({'|'.join(names)})/.+"


POLICIES = {
    "none": r"(?!)",
    "all_but_attention": _OUTSIDE,
    "q": _and_projections("q"),
    "k": _and_projections("k"),
    "v": _and_projections("v"),
    "kv": _and_projections("k", "v"),
    "qkv": _and_projections("q", "k", "v"),
    "o": _and_projections("out"),
    "all": r".+",
}
"""Policy -> regular expression of the student's paths that it inherits.

`all_but_attention` is the paper's choice; the rows after it are its Table 3; `all` is for a student
with the teacher's mixer.
"""

LABELS = "y_embedder/embedding"
NULL_CAPTION = "y_embedder/null_caption"


@dataclass
class InheritanceReport:
    """Where every parameter went: path -> number of scalars.

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
        """The report as JSON, sorted."""
        return json.dumps(
            dataclasses.asdict(self) | {"totals": self.totals}, indent=2, sort_keys=True
        )

    def table(self) -> str:
        """The report as lines of text, one per parameter, totals last."""
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


def inherit(
    student_config: DenoiserConfig,
    student_params: Params,
    teacher_config: DenoiserConfig,
    teacher_params: Params,
    policy: str,
    reinitialise: Sequence[str] = (),
    freeze: Sequence[str] = (),
) -> tuple[Params, InheritanceReport]:
    """The student's initial parameters, and where each of them comes from.

    Leaves that `policy` (a row of POLICIES) names are copied from the teacher, all others stay as
    they are in `student_params`. `reinitialise` and `freeze` are regular expressions searched for
    in the student's paths: the former keep the student's own values although the policy would
    inherit them, the latter are only reported. A class table of another label count keeps the
    student's rows and inherits the null row. Copies never share memory with the teacher, so that a
    training step may donate them; they keep the student's dtype and sharding.

    Raises ValueError for an unknown policy, a pattern that matches nothing, a teacher of another
    kind (class labels or captions), and, all in one, for every inherited leaf that the teacher
    lacks or has in another shape or meaning.
    """
    chosen = inherited_paths(
        student_config, student_params, teacher_config, teacher_params, policy, reinitialise
    )
    student = traverse_util.flatten_dict(student_params, sep="/")
    teacher = traverse_util.flatten_dict(teacher_params, sep="/")
    frozen = _matching(freeze, student)
    report = InheritanceReport(policy, frozen={path: student[path].size for path in frozen})
    result = dict(student)
    for path, leaf in student.items():
        rows = None
        if path in chosen and path == LABELS:
            rows = _label_rows(student_config, teacher_config)
        count = 0
        if path in chosen:
            result[path], count = _take(leaf, teacher[path], rows)
        if count:
            report.inherited[path] = count
        if leaf.size > count:
            report.new[path] = leaf.size - count
    for path, leaf in teacher.items():
        rest = leaf.size - report.inherited.get(path, 0)
        if rest:
            report.dropped[path] = rest
    report.notes = _notes(report, student_config, teacher_config, chosen)
    return traverse_util.unflatten_dict(result, sep="/"), report


def inherited_paths(
    student_config: DenoiserConfig,
    student_params: Params,
    teacher_config: DenoiserConfig,
    teacher_params: Params,
    policy: str,
    reinitialise: Sequence[str] = (),
) -> list[str]:
    """The student's paths that `inherit` fills from the teacher; only shapes are looked at.

    Raises ValueError as `inherit` does, so that a job can refuse before it loads anything.
    """
    if policy not in POLICIES:
        raise unknown_name("inheritance policy", policy, POLICIES)
    if type(student_config) is not type(teacher_config):
        raise ValueError(
            f"a {student_config.family} student cannot inherit from a {teacher_config.family}"
            " teacher: one of them is conditioned on class labels, the other on captions"
        )
    student = traverse_util.flatten_dict(student_params, sep="/")
    teacher = traverse_util.flatten_dict(teacher_params, sep="/")
    kept = _matching(reinitialise, student)
    chosen = [p for p in student if re.fullmatch(POLICIES[policy], p) and p not in kept]
    if LABELS in chosen and LABELS not in teacher and policy != "all":
        chosen.remove(LABELS)  # an unconditional teacher has no labels to give
    _check_shapes(chosen, student, teacher, student_config, teacher_config)
    return chosen


def _matching(patterns: Sequence[str], student: Params) -> list[str]:
    """The student's paths in which any pattern is found; every pattern must be found in one."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in student):
            raise ValueError(
                f"pattern {pattern!r} matches no parameter of the student; its paths are"
                f" {', '.join(student)}"
            )
    return [path for path in student if any(re.search(p, path) for p in patterns)]


# Keeping the student's own one is possible, but hardly what is wanted.
_NO_NULL_CAPTION = (
    " (its file holds no null caption, and the student's own is random: give the student"
    " model_max_length=None and encode the empty prompt when one is needed)"
)


def _check_shapes(
    chosen: Sequence[str],
    student: Params,
    teacher: Params,
    student_config: DenoiserConfig,
    teacher_config: DenoiserConfig,
) -> None:
    """Every mismatch in one error. Label tables may differ in their number of rows."""
    problems = []
    for path in chosen:
        if path not in teacher:
            hint = _NO_NULL_CAPTION if path == NULL_CAPTION else ""
            problems.append(f"{path}: student {tuple(student[path].shape)}, teacher has none{hint}")
            continue
        wanted = _meaning(path, student[path].shape, student_config)
        given = _meaning(path, teacher[path].shape, teacher_config)
        if path == LABELS:
            wanted, given = wanted[1:], given[1:]
        if wanted != given:
            problems.append(f"{path}: student {wanted}, teacher {given}")
    problems += _other_meanings(chosen, student_config, teacher_config)
    if problems:
        lines = "\n  ".join(problems)
        pattern = problems[0].split(":")[0]
        raise ValueError(
            f"{len(problems)} parameter(s) cannot be inherited:\n  {lines}\nGive the student the"
            " teacher's size, or keep its own initial values there with a regular expression in"
            f" `reinitialise`, for instance {pattern!r}"
        )


def _meaning(path: str, shape: Shape, config: DenoiserConfig) -> Shape:
    """The shape with patch axes spelled out: 2x2 patches of 4 channels are not 4x4 of one."""
    p, D = config.patch_size, config.hidden_size
    if path == "x_embedder/kernel":
        return (p, p, config.in_channels, D)
    if path.startswith("final_layer/linear/"):
        outputs = (p, p, config.out_channels // config.in_channels, config.in_channels)
        return (D, *outputs) if path.endswith("kernel") else outputs
    return tuple(shape)


def _other_meanings(
    chosen: Sequence[str], student: DenoiserConfig, teacher: DenoiserConfig
) -> list[str]:
    """Where equal shapes of text-to-image networks are not the same function."""
    if not isinstance(student, PixArtConfig) or not isinstance(teacher, PixArtConfig):
        return []
    problems = []
    heads = student.cross_heads, teacher.cross_heads
    if any(path.startswith("blocks/cross_attn/") for path in chosen) and heads[0] != heads[1]:
        problems.append(
            f"blocks/cross_attn: student {heads[0]} heads, teacher {heads[1]} (give the student"
            f" cross_num_heads={heads[1]})"
        )
    layers = student.compressed_layers, teacher.compressed_layers
    if any(path.startswith("kv_compress/") for path in chosen) and layers[0] != layers[1]:
        problems.append(f"kv_compress: student layers {layers[0]}, teacher layers {layers[1]}")
    return problems


def _label_rows(student: DenoiserConfig, teacher: DenoiserConfig) -> list[tuple[slice, slice]]:
    """(student rows, teacher rows) that mean the same: all classes, or none, and the null row."""
    assert isinstance(student, DiTConfig) and isinstance(teacher, DiTConfig), "no labels"
    pairs = []
    if student.num_classes == teacher.num_classes:
        pairs.append((slice(0, student.num_classes), slice(0, teacher.num_classes)))
    if student.null_label is not None and teacher.null_label is not None:
        pairs.append(
            (
                slice(student.null_label, student.null_label + 1),
                slice(teacher.null_label, teacher.null_label + 1),
            )
        )
    return pairs


def _take(own: Array, given: Array, rows: list[tuple[slice, slice]] | None) -> tuple[Array, int]:
    """A copy of `given` (or of some of its rows within `own`) as `own` is stored; its size."""
    if rows is None:
        return _like(own, given), given.size
    count = sum(given[source].size for _, source in rows)
    if isinstance(own, jax.Array):
        mixed = own
        for target, source in rows:
            mixed = mixed.at[target].set(jnp.asarray(given[source], own.dtype))
        return _like(own, mixed), count
    table = np.array(own)
    for target, source in rows:
        table[target] = np.asarray(given[source])
    return table, count


def _like(own: Array, given: Array) -> Array:
    """A copy of `given` with the dtype, and for jax arrays the sharding, of `own`."""
    if not isinstance(own, jax.Array):
        return np.array(given, dtype=own.dtype)
    if given.dtype != own.dtype:
        given = given.astype(own.dtype)
    return jax.device_put(given, own.sharding, may_alias=False)


def _notes(
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
    if isinstance(student, DiTConfig) and isinstance(teacher, DiTConfig):
        notes += _label_notes(report, student, teacher)
    if any(p.startswith("blocks/attn/") for p in chosen) and student.num_heads != teacher.num_heads:
        notes.append(
            f"attention projections: {teacher.num_heads} heads in the teacher, {student.num_heads}"
            " in the student; rows of the whole matrix are inherited"
        )
    return notes


def _scale_notes(student: PixArtConfig, teacher: PixArtConfig) -> list[str]:
    """How the scaled position table of a text-to-image network changes: nothing is resampled."""
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


def _label_notes(report: InheritanceReport, student: DiTConfig, teacher: DiTConfig) -> list[str]:
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
