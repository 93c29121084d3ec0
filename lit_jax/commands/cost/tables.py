"""The tables of the cost job, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_jax.commands.cost.compiled import PROGRAMS
from lit_jax.models.transformer.macs import COMPONENTS

NOTES = """\
Products (GMAC, 1e9 multiply-accumulates) are those of the equations, per image and forward pass,
from closed forms; norms, softmax and other functions of single numbers are not in them. "core" is
the attention between its projections as a share of that of softmax with all tokens; "Eq. 4" are
all attention layers as the LiT paper counts them, with three products with the state for two.
"compiler" is XLA's own count of the optimised program, in operations: two per product, and all
other additions and multiplications of numbers; bodies of loops as often as they run. GiB:
parameters and inputs (for a training step its whole state), temporary arrays and outputs of the
compiled program, as its buffers are assigned. "-": not compiled; nothing is extrapolated."""


def tables(content: Mapping[str, Any]) -> str:
    """Return one section per model, and what the columns mean."""
    request = content["request"]
    about = (
        f"Compiled with jax {request['jax']} for {request['device']}, batch size"
        f" {request['batch_size']}, {request['dtype']}, up to {request['compile_up_to']} pixels;"
        f" {request['vae_factor']} pixels are one latent pixel per axis."
    )
    sections = [f"## {text}\n\n{_of_model(rows)}" for text, rows in content["models"].items()]
    return "\n".join([*sections, about, NOTES, ""])


def _of_model(rows: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(rows.values()))
    used = [name for name in COMPONENTS if any(row["macs"][name] for row in rows.values())]
    held = {name: first["parameters"][name] for name in COMPONENTS if first["parameters"][name]}
    listed = ", ".join(f"{name} {number:,}" for name, number in held.items())
    header = ["px", "tokens", *used, "all GMAC", "core"]
    printed = any(_as_printed(row) for row in rows.values())
    header += ["Eq. 4"] if printed else []
    for program in PROGRAMS:
        header += [f"{program}: compiler GFLOP", "GiB"]
    lines = [
        [side, f"{row['tokens']:,}", *_cells(row, used, printed)] for side, row in rows.items()
    ]
    total = sum(held.values())
    return f"{total:,} parameters: {listed}\n\n{_table(header, lines)}"


def _as_printed(row: Mapping[str, Any]) -> bool:
    """Return whether the LiT paper prints another count of the attention than it multiplies."""
    of_attention = ("projections", "attention", "convolution")
    multiplied = sum(row["macs"][name] for name in of_attention)
    return bool(row["attention_macs_as_printed"] != multiplied)


def _cells(row: Mapping[str, Any], used: Sequence[str], printed: bool) -> list[str]:
    cells = [f"{row['macs'][name] / 1e9:.4g}" for name in used]
    cells += [f"{row['forward_macs'] / 1e9:.5g}", f"{row['core_of_softmax_core']:.2%}"]
    cells += [f"{row['attention_macs_as_printed'] / 1e9:.4g}"] if printed else []
    for program in PROGRAMS:
        counted = row["compiled"].get(program)
        if counted is None:
            cells += ["-", "-"]
        else:
            cells += [f"{counted['flops'] / 1e9:.5g}", f"{counted['peak'] / 2**30:.3g}"]
    return cells


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned in plain text, too."""
    everything = [header, *lines]
    widths = [max(len(line[i]) for line in everything) for i in range(len(header))]
    rule = ["-" * (width - 1) + ":" for width in widths]
    text = ""
    for line in (header, rule, *lines):
        text += "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |\n"
    return text
