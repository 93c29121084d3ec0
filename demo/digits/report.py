"""report.json and report.md of a comparison: typed rows, the protocol behind them, the pictures.

A number without its protocol is not a result, so `write_report` refuses to write one: weights and
reference hashes, samplers with steps, guidance, dtype, seed and count are fields, not remarks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_jax.diffusion.guidance import GUIDED_CHANNELS
from lit_jax.storage import files

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelRow:
    """Measurements of one model.

    The two unprefixed scores belong to the first sampler of the protocol, the `ddim_` ones to the
    second. `steps` and `train_seconds` are those of the training of this model alone (a student
    does not count its teacher's); `attention_macs` are the multiply-accumulates of all
    self-attention mixers in one forward pass of one image.
    """

    name: str
    frechet_distance: float
    accuracy: float
    ddim_frechet_distance: float
    ddim_accuracy: float
    steps: int
    params: int
    attention_macs: int
    train_seconds: float


@dataclass(frozen=True)
class SamplerRecord:
    """`steps` is the spacing as asked for (e.g. "50", "ddim50"); `nfe` the number of times that one
    image passes through the network, guidance included."""

    name: str
    steps: str
    nfe: int


@dataclass(frozen=True)
class Protocol:
    """Sampling protocol of all rows, which differ only in the weights.

    `weights_sha256` maps each row name to the hash of its parameters, as in its `sample.json`;
    `reference_sha256` is `files.sha256_array` of the reference images. `guidance_interval` is the
    closed range of t in which guidance acts, None for every t. `vae` names the decoder, None in
    pixel space.
    """

    feature_space: str
    reference: str
    reference_sha256: str
    reference_count: int
    count: int
    samplers: tuple[SamplerRecord, SamplerRecord]
    guidance_scale: float
    guidance_channels: str
    guidance_interval: tuple[float, float] | None
    vae: str | None
    dtype: str
    seed: int
    weights_sha256: Mapping[str, str]


@dataclass(frozen=True)
class Context:
    """Values to compare the rows with.

    `real_frechet_distance`: the reference against `real_count` other real images;
    `judge_accuracy`: the judge on the reference; `judge`: what it is and what it learned from.
    """

    real_frechet_distance: float
    real_count: int
    judge_accuracy: float
    judge: str


@dataclass(frozen=True)
class Report:
    """Everything in report.json. `pictures` maps a caption to a PNG path relative to the report."""

    title: str
    rows: Sequence[ModelRow]
    protocol: Protocol
    context: Context
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_report(folder: str | os.PathLike[str], report: Report) -> None:
    """Write report.json and report.md into `folder`, each atomically.

    Raises ValueError, listing every problem at once and writing nothing, when a value is missing,
    of another type, out of range or not finite, or when a picture does not exist.
    """
    problems = _problems(report) + [
        f"picture {path!r} is not in {os.fspath(folder)!r}"
        for path in report.pictures.values()
        if not Path(folder, path).is_file()
    ]
    if problems:
        raise ValueError("the report is not complete: " + "; ".join(problems))
    text = json.dumps(to_json(report), indent=2, allow_nan=False)
    files.write_text(Path(folder, "report.json"), text + "\n")
    files.write_text(Path(folder, "report.md"), to_markdown(report))


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON types."""
    content = dataclasses.asdict(dataclasses.replace(report, rows=list(report.rows)))
    content["protocol"]["weights_sha256"] = dict(report.protocol.weights_sha256)
    return {**content, "pictures": dict(report.pictures)}


def to_markdown(report: Report) -> str:
    """Return the report for people: table, how to read it, pictures, protocol."""
    protocol, context = report.protocol, report.context
    first, second = (f"{s.name.upper()} {s.steps}" for s in protocol.samplers)
    head = (
        f"| model | FDD, {first} | accuracy, {first} | FDD, {second} | accuracy, {second}"
        " | training steps | parameters | attention MACs | training time |"
    )
    lines = [f"# {report.title}", "", head, "|---" + "|---:" * 8 + "|"]
    lines += [_table_row(row) for row in report.rows]
    lines += ["", _reading_guide(protocol, context), ""]
    for caption, path in report.pictures.items():
        lines += [f"![{caption}]({path})", "", f"*{caption}*", ""]
    lines += ["## Protocol", "", *_protocol_lines(protocol, context)]
    return "\n".join(lines) + "\n"


def _table_row(row: ModelRow) -> str:
    minutes, seconds = divmod(round(row.train_seconds), 60)
    cells = [
        f"`{row.name}`",
        f"{row.frechet_distance:.3f}",
        f"{row.accuracy:.1%}",
        f"{row.ddim_frechet_distance:.3f}",
        f"{row.ddim_accuracy:.1%}",
        f"{row.steps:,}",
        f"{row.params:,}",
        f"{row.attention_macs:,}",
        f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s",
    ]
    return "| " + " | ".join(cells) + " |"


def _reading_guide(protocol: Protocol, context: Context) -> str:
    return (
        f"**How to read this.** FDD, the Fréchet digit distance, compares {protocol.count:,}"
        f" generated with {protocol.reference_count:,} real digits in the fixed feature space"
        f" `{protocol.feature_space}`; lower is better. It is *not* FID and cannot be compared with"
        f" any FID. {context.real_count:,} other real digits have a distance of"
        f" {context.real_frechet_distance:.3f} to the same reference: values near that are as good"
        " as this measure can tell. Accuracy is the share of samples that a classifier, trained on"
        " real digits that no model here has seen, recognises as the class they were asked to show;"
        f" on real digits it reaches {context.judge_accuracy:.1%}. Training steps and time are"
        " those of each model alone, without its teacher. One seed is no spread: small gaps between"
        " rows can be chance."
    )


def _protocol_lines(protocol: Protocol, context: Context) -> list[str]:
    interval = protocol.guidance_interval
    where = "at every t" if interval is None else f"for t in [{interval[0]:g}, {interval[1]:g}]"
    samplers = ", ".join(f"{s.name} steps {s.steps} (nfe {s.nfe})" for s in protocol.samplers)
    lines = [
        f"- samplers: {samplers}",
        f"- guidance: scale {protocol.guidance_scale:g}, channels {protocol.guidance_channels},"
        f" {where}",
        f"- VAE: {protocol.vae or 'none (pixel space)'}; dtype {protocol.dtype};"
        f" seed {protocol.seed}; {protocol.count} samples per model and sampler",
        f"- reference: {protocol.reference}, {protocol.reference_count} images,"
        f" sha256 `{protocol.reference_sha256}`",
        f"- judge: {context.judge}",
    ]
    weights = protocol.weights_sha256.items()
    return lines + [f"- weights of `{name}`: sha256 `{digest}`" for name, digest in weights]


def _problems(report: Report) -> list[str]:
    """Return everything that keeps the report from being written."""
    protocol, found = report.protocol, []
    for row in report.rows:
        found += _check_fields(row, f"row {row.name!r}")
    found += _check_fields(protocol, "protocol")
    found += _check_fields(report.context, "context")
    for index, sampler in enumerate(protocol.samplers):
        found += _check_fields(sampler, f"protocol.samplers[{index}]")
    names = [row.name for row in report.rows]
    if not names or len(set(names)) != len(names):
        found.append(f"row names {names} must be unique and at least one")
    if set(protocol.weights_sha256) != set(names):
        found.append(f"weights_sha256 is of {sorted(protocol.weights_sha256)}, rows are {names}")
    digests = {"reference": protocol.reference_sha256, **protocol.weights_sha256}
    for name, digest in digests.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            found.append(f"sha256 of {name} is {digest!r}; 64 hex digits are needed")
    if (count := len(tuple(protocol.samplers))) != 2:
        found.append(f"{count} samplers; a row has the scores of two")
    if protocol.guidance_channels not in GUIDED_CHANNELS:
        known = ", ".join(GUIDED_CHANNELS)
        found.append(f"guidance_channels {protocol.guidance_channels!r} (known: {known})")
    interval = protocol.guidance_interval
    if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
        found.append(f"guidance_interval {interval} is no range of t")
    return found


def _check_fields(record: Any, where: str) -> list[str]:
    """Return type, range and finiteness of the scalar fields of a dataclass, by their
    annotation."""
    found = []
    for field in dataclasses.fields(record):
        value, name = getattr(record, field.name), f"{where}: {field.name}"
        if field.type == "int":
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                found.append(f"{name} is {value!r}; it must be an integer, at least 0")
        elif field.type == "float":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                found.append(f"{name} is {value!r}; it must be a finite number, at least 0")
            elif field.name.endswith("accuracy") and value > 1:
                found.append(f"{name} is {value!r}; it must be a fraction in [0, 1]")
        elif field.type in ("str", "str | None"):
            allowed_none = value is None and field.type != "str"
            if not allowed_none and not (isinstance(value, str) and value):
                found.append(f"{name} is {value!r}; it must be a text that is not empty")
    return found
