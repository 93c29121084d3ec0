"""Published sizes of the class-conditional backbones."""

from __future__ import annotations

from typing import Any

# DiT paper, Table 1, LiT paper, section 4, and DiG's published models: depth, hidden size, and the
# heads of softmax attention, linear attention and gated linear attention.
BACKBONES = {
    "S": (12, 384, 6, 2, 6),
    "B": (12, 768, 12, 3, 12),
    "L": (24, 1024, 16, 4, 16),
    "XL": (28, 1152, 16, 4, 18),
}
PATCH_SIZES = (2, 4, 8)
HEADS = ("softmax", "linear", "gated")


def named_sizes(member: str, fields: dict[str, Any], heads: str) -> dict[str, dict[str, Any]]:
    """Return the rows "MEMBER-SIZE/PATCH" -> fields; `heads` is an entry of HEADS."""
    rows = {}
    for size, (depth, width, *counts) in BACKBONES.items():
        for patch in PATCH_SIZES:
            shape = {"depth": depth, "hidden_size": width, "patch_size": patch}
            count = counts[HEADS.index(heads)]
            rows[f"{member}-{size}/{patch}"] = fields | shape | {"num_heads": count}
    return rows
