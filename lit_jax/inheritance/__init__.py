"""Weight inheritance: which parameters a student takes over from a trained teacher.

LiT paper, section 3.3 and Table 3: a linear student keeps everything of its softmax teacher except
the self-attention, and optionally some of the attention's projections. Projections are inherited
as rows of the whole D x D matrix, so the two head counts need not agree. The self-attention of a
text-to-image network includes its key/value compression; its cross-attention is inherited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lit_jax.inheritance.policies import POLICIES, Params, inherited_paths, matching
from lit_jax.inheritance.report import InheritanceReport, remarks
from lit_jax.models.registry import DenoiserConfig, roles_of

__all__ = ["POLICIES", "InheritanceReport", "inherit", "inherited_paths"]

Array = jax.Array | np.ndarray


def inherit(
    student_config: DenoiserConfig,
    student_params: Params,
    teacher_config: DenoiserConfig,
    teacher_params: Params,
    policy: str,
    reinitialise: Sequence[str] = (),
    freeze: Sequence[str] = (),
) -> tuple[Params, InheritanceReport]:
    """Return the student's initial parameters, and where each of them comes from.

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
    roles = roles_of(student_config)
    student = traverse_util.flatten_dict(student_params, sep="/")
    teacher = traverse_util.flatten_dict(teacher_params, sep="/")
    frozen = matching(freeze, student)
    report = InheritanceReport(policy, frozen={path: student[path].size for path in frozen})
    result = dict(student)
    for path, leaf in student.items():
        rows = None
        if path in chosen and path == roles.labels:
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
    report.notes = remarks(report, student_config, teacher_config, chosen)
    return traverse_util.unflatten_dict(result, sep="/"), report


def _label_rows(student: Any, teacher: Any) -> list[tuple[slice, slice]]:
    """Return (student rows, teacher rows) that mean the same: all classes, or none, and the null
    row."""
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
    """Return a copy of `given` (or of some of its rows within `own`) as `own` is stored; its
    size."""
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
    """Return a copy of `given` with the dtype, and for jax arrays the sharding, of `own`."""
    if not isinstance(own, jax.Array):
        return np.array(given, dtype=own.dtype)
    if given.dtype != own.dtype:
        given = given.astype(own.dtype)
    return jax.device_put(given, own.sharding, may_alias=False)
