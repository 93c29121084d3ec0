"""Policies: the paths that a student inherits, and the checks of their shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from flax import traverse_util

from lit_jax.config import unknown_name
from lit_jax.models.family import Roles
from lit_jax.models.registry import DenoiserConfig, family_of, roles_of

Params = dict[str, Any]

Policy = Callable[[Roles, str], bool]
"""Decides whether a student inherits the parameter at a path."""


def _outside_attention(*projections: str) -> Policy:
    """Inherit everything outside the self-attention, and these of its projections."""

    def policy(roles: Roles, path: str) -> bool:
        inside = re.match(roles.attention, path)
        kept = (roles.projection.format(name) + "/" for name in projections)
        return not inside or path.startswith(tuple(kept))

    return policy


POLICIES: dict[str, Policy] = {
    "none": lambda roles, path: False,
    "all_but_attention": _outside_attention(),
    "q": _outside_attention("q"),
    "k": _outside_attention("k"),
    "v": _outside_attention("v"),
    "kv": _outside_attention("k", "v"),
    "qkv": _outside_attention("q", "k", "v"),
    "o": _outside_attention("out"),
    "all": lambda roles, path: True,
}
"""`all_but_attention` is the paper's choice; the rows after it are its Table 3; `all` is for a
student with the teacher's mixer."""


def inherited_paths(
    student_config: DenoiserConfig,
    student_params: Params,
    teacher_config: DenoiserConfig,
    teacher_params: Params,
    policy: str,
    reinitialise: Sequence[str] = (),
) -> list[str]:
    """Return the student's paths that `inherit` fills from the teacher; only shapes are looked at.

    Raises ValueError as `inherit` does, so that a job can refuse before it loads anything.
    """
    if policy not in POLICIES:
        raise unknown_name("inheritance policy", policy, POLICIES)
    if family_of(student_config).condition != family_of(teacher_config).condition:
        raise ValueError(
            f"a {student_config.family} student cannot inherit from a {teacher_config.family}"
            " teacher: one of them is conditioned on class labels, the other on captions"
        )
    student = traverse_util.flatten_dict(student_params, sep="/")
    teacher = traverse_util.flatten_dict(teacher_params, sep="/")
    kept = matching(reinitialise, student)
    roles = roles_of(student_config)
    chosen = [p for p in student if POLICIES[policy](roles, p) and p not in kept]
    if roles.labels in chosen and roles.labels not in teacher and policy != "all":
        chosen.remove(roles.labels)  # an unconditional teacher has no label table
    if roles.pooled in chosen and roles.pooled not in teacher:
        chosen.remove(roles.pooled)  # a softmax teacher pools nothing; averages are the start
    _check_shapes(chosen, student, teacher, student_config, teacher_config)
    return chosen


def matching(patterns: Sequence[str], student: Params) -> list[str]:
    """Return the student's paths in which any pattern is found; every pattern must be found in
    one."""
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
    """Raise one ValueError for all mismatches. Label tables may differ in their number of rows."""
    roles, problems = roles_of(student_config), []
    for path in chosen:
        if path not in teacher:
            hint = _NO_NULL_CAPTION if path == roles.null_caption else ""
            problems.append(f"{path}: student {tuple(student[path].shape)}, teacher has none{hint}")
            continue
        needed = roles.meaning(path, student[path].shape, student_config)
        given = roles.meaning(path, teacher[path].shape, teacher_config)
        if path == roles.labels:
            needed, given = needed[1:], given[1:]
        if needed != given:
            problems.append(f"{path}: student {needed}, teacher {given}")
    problems += roles.conflicts(chosen, student_config, teacher_config)
    if problems:
        lines = "\n  ".join(problems)
        pattern = problems[0].split(":")[0]
        raise ValueError(
            f"{len(problems)} parameter(s) cannot be inherited:\n  {lines}\nGive the student the"
            " teacher's size, or keep its own initial values there with a regular expression in"
            f" `reinitialise`, for instance {pattern!r}"
        )
