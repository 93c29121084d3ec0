"""Policies: the paths that a student inherits, and the checks of their shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flax import traverse_util

from lit_jax.config import unknown_name
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig

Params = dict[str, Any]
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
POOLED = "blocks/attn/pool/kernel"


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
    if isinstance(student_config, PixArtConfig) != isinstance(teacher_config, PixArtConfig):
        raise ValueError(
            f"a {student_config.family} student cannot inherit from a {teacher_config.family}"
            " teacher: one of them is conditioned on class labels, the other on captions"
        )
    student = traverse_util.flatten_dict(student_params, sep="/")
    teacher = traverse_util.flatten_dict(teacher_params, sep="/")
    kept = matching(reinitialise, student)
    chosen = [p for p in student if re.fullmatch(POLICIES[policy], p) and p not in kept]
    if LABELS in chosen and LABELS not in teacher and policy != "all":
        chosen.remove(LABELS)  # an unconditional teacher has no labels to give
    if POOLED in chosen and POOLED not in teacher:
        chosen.remove(POOLED)  # a softmax teacher pools nothing; the student begins with averages
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
    """Return the shape with patch axes spelled out: 2x2 patches of 4 channels are not 4x4 of
    one."""
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
    """Return where equal shapes of text-to-image networks are not the same function."""
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
