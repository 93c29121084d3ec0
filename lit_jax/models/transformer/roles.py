"""Roles of the parameters of a transformer on patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_jax.models.family import Roles

Shape = tuple[int, ...]


def meaning(path: str, shape: Shape, config: Any) -> Shape:
    """Return the shape with patch axes spelled out: 2x2 patches of 4 channels are not 4x4 of 1."""
    p, D = config.patch_size, config.hidden_size
    if path == "x_embedder/kernel":
        return (p, p, config.in_channels, D)
    if path.startswith("final_layer/linear/"):
        outputs = (p, p, config.out_channels // config.in_channels, config.in_channels)
        return (D, *outputs) if path.endswith("kernel") else outputs
    return tuple(shape)


def grid_notes(student: Any, teacher: Any) -> list[str]:
    """Return the remark on a position table that is recomputed for another token grid."""
    if student.grid == teacher.grid:
        return []
    (a, b), (c, d) = teacher.grid, student.grid
    return [f"position table: analytic, recomputed from {a}x{b} to {c}x{d} tokens"]


LABELLED = Roles(
    attention=r"blocks/attn/",
    projection="blocks/attn/{}",
    labels="y_embedder/embedding",
    pooled="blocks/attn/pool/kernel",
    meaning=meaning,
    notes=grid_notes,
)
"""Of denoisers on class labels."""


def scaled_notes(student: Any, teacher: Any) -> list[str]:
    """Return the remark on a scaled position table that is recomputed: nothing is resampled."""
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
        before, after = ("x".join(f"{side:g}" for side in span) for span in spans)
        note += f"; positions span {after} instead of {before}, so the student gets other codes"
    return [note]


def caption_conflicts(paths: Sequence[str], student: Any, teacher: Any) -> list[str]:
    """Return the reasons why equal shapes of caption models are not the same function."""
    problems = []
    heads = student.cross_heads, teacher.cross_heads
    if any(path.startswith("blocks/cross_attn/") for path in paths) and heads[0] != heads[1]:
        problems.append(
            f"blocks/cross_attn: student {heads[0]} heads, teacher {heads[1]} (give the student"
            f" cross_num_heads={heads[1]})"
        )
    layers = student.compressed_layers, teacher.compressed_layers
    if any(path.startswith("kv_compress/") for path in paths) and layers[0] != layers[1]:
        problems.append(f"kv_compress: student layers {layers[0]}, teacher layers {layers[1]}")
    return problems


CAPTIONED = Roles(
    attention=r"blocks/attn/|kv_compress/",
    projection="blocks/attn/{}",
    null_caption="y_embedder/null_caption",
    pooled="blocks/attn/pool/kernel",
    meaning=meaning,
    conflicts=caption_conflicts,
    notes=scaled_notes,
)
"""Of denoisers on captions."""
