"""What devices send each other, read from the text of a compiled program."""

from __future__ import annotations

import math
import re

KINDS = (
    "all-reduce",
    "collective-permute",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-broadcast",
)
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}

_INSTRUCTION = re.compile(rf"= (\S.*?) (?:ragged-)?({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def sent(program: str) -> dict[str, list[int]]:
    """Kind of communication -> bytes of every array that a device gets by it. An instruction in a
    loop counts once."""
    found: dict[str, list[int]] = {}
    for shapes, kind in _INSTRUCTION.findall(program):
        for dtype, sizes in _SHAPE.findall(shapes):
            elements = math.prod(int(size) for size in sizes.split(",") if size)
            found.setdefault(kind, []).append(BYTES[dtype] * elements)
    return found
