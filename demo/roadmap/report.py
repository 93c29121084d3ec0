"""Tables, plot and report of `demo/roadmap`, from the results of its runs.

    python -m demo.roadmap.report runs/roadmap docs

takes over the report of a finished `make roadmap` into the documentation: `roadmap.json`, the plot,
and the tables in `roadmap.md`. Rows that were not run again keep their numbers, if these were
measured alike.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


from configs.digits_roadmap import ROWS
from demo.digits import classifier, dataset, features
from demo.roadmap.merge import described, kept, merged
from demo.roadmap.verdicts import summary, verdict_table, verdicts
from lit_jax.storage import files
from lit_jax.storage import png as images

TITLES = {
    1: "Attention (Table 1), from scratch",
    2: "Heads (Table 2), from scratch, ReLU + DWC",
    3: "Inheritance (Table 3), 2 heads",
    4: "Distillation (Table 4), inherited from 8,000 steps",
    5: "Siblings, students of one teacher",
}
SCORES = ("frechet_distance", "accuracy")

WIDE = 8.0
"""A table whose largest distance is so many times its smallest has a logarithmic axis."""

BEGIN, END = "<!-- from roadmap.json -->", "<!-- end -->"

Values = Mapping[int, float]  # seed -> score


def reference_scores(data_dir: Path) -> dict[str, Any]:
    """Return the scores of real digits outside of the reference."""
    real, real_labels = dataset.load_split(data_dir, "train")
    heldout, heldout_labels = dataset.load_split(data_dir, "heldout")
    judge = classifier.train_judge(heldout, heldout_labels)
    return {
        "frechet_distance": features.digit_frechet_distance(real, heldout),
        "accuracy": classifier.conditional_accuracy(judge, real, real_labels),
        "sha256": files.sha256_array(real),
    }


def write(out: Path, results: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> None:
    """Write report.json, report.md and roadmap.png into `out`."""
    report = summarise(results, reference)
    plot(out / "roadmap.png", report)
    files.write_json(out / "report.json", report)
    files.write_text(out / "report.md", to_markdown(report))


def summarise(results: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in report.json: the rows with every seed's scores, and the verdicts."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        found.setdefault(result["row"], []).append(result)
    measured = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
    }
    rows = {}
    for name, row in ROWS.items():
        if runs := found.get(row.same_as or name):
            spreads = {score: spread({r["seed"]: r[score] for r in runs}) for score in SCORES}
            rows[name] = described(
                name,
                {
                    "steps": runs[0]["request"]["train"]["total_steps"],
                    **spreads,
                    "train_seconds": statistics.mean(r["train_seconds"] for r in runs),
                    "weights_sha256": {str(r["seed"]): r["weights_sha256"] for r in runs},
                    "measured": measured,
                },
            )
    request = results[0]["request"]
    return {
        "protocol": request["protocol"],
        "count": request["count"],
        "batch_size": request["train"]["batch_size"],
        "feature_space": "digit-96",
        "reference": dict(reference),
        "rows": rows,
        "verdicts": verdicts(rows),
    }


def spread(values: Values) -> dict[str, Any]:
    """Return values by seed, mean, and standard deviation over seeds (None for a single seed)."""
    numbers = list(values.values())
    return {
        "values": {str(seed): value for seed, value in values.items()},
        "mean": statistics.mean(numbers),
        "standard_deviation": statistics.stdev(numbers) if len(numbers) > 1 else None,
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: tables, verdicts, protocol."""
    return "\n".join(
        [
            "# The roadmap in miniature",
            "",
            *tables(report),
            "![FDD per row, beside the paper's FID](roadmap.png)",
            "",
            "## Verdicts",
            "",
            *summary(report),
            "",
            *verdict_table(report),
            "",
            "## Protocol",
            "",
            *protocol_lines(report),
            "",
        ]
    )


def tables(report: Mapping[str, Any]) -> list[str]:
    """Return one Markdown table per table, with the paper's columns where it has that table."""
    lines = []
    for table, title in TITLES.items():
        rows = [row for row in report["rows"].values() if row["table"] == table]
        if not rows:
            continue
        steps = " or ".join(f"{steps:,}" for steps in sorted({row["steps"] for row in rows}))
        lines += [f"### {title}, {steps} steps", ""]
        quoted = any(row["paper"] for row in rows)
        lines += [
            "| row | FDD | accuracy |" + (" paper's row | paper's FID |" if quoted else " steps |"),
            "|---|---:|---:|" + ("---|---:|" if quoted else "---:|"),
        ]
        for row in rows:
            distance = cell(row["frechet_distance"], 1, 3, "")
            accuracy = cell(row["accuracy"], 100, 1, " %")
            fid = "" if row["fid"] is None else f"{row['fid']:.2f}"
            rest = f"{row['paper']} | {fid}" if quoted else f"{row['steps']:,}"
            lines.append(f"| {row['label']} | {distance} | {accuracy} | {rest} |")
        lines.append("")
        known = [name for name, row in ROWS.items() if row.table == table]
        if missing := [ROWS[name].label for name in known if name not in report["rows"]]:
            lines += [f"Not run: {', '.join(missing)}.", ""]
    return lines


def cell(scores: Mapping[str, Any], factor: float, digits: int, unit: str) -> str:
    """Return mean ± standard deviation; the mean alone for one seed."""
    text = f"{factor * scores['mean']:.{digits}f}"
    if scores["standard_deviation"] is not None:
        text += f" ± {factor * scores['standard_deviation']:.{digits}f}"
    return text + unit


def protocol_lines(report: Mapping[str, Any]) -> list[str]:
    protocol, reference = report["protocol"], report["reference"]
    seeds = sorted(
        {s for row in report["rows"].values() for s in row["frechet_distance"]["values"]}
    )
    return [
        f"- {report['count']} images per run, {protocol['sampler']} in steps {protocol['steps']},"
        f" guidance {protocol['cfg_scale']:g}; seeds {', '.join(seeds)} of training and sampling;"
        f" batch {report['batch_size']}",
        f"- FDD is the Fréchet distance to the training digits in the feature space"
        f" {report['feature_space']}, lower is better; it is no FID. Held-out real digits have"
        f" {reference['frechet_distance']:.3f}",
        "- accuracy is that of a classifier trained on held-out digits; on real training digits it"
        f" reaches {reference['accuracy']:.1%}",
        "- differences are means over seeds, positive in favour of the claim; t: Student's, of the"
        " differences within a seed; shown: t in FDD beyond its two-sided 5 % point and the"
        " difference larger than the spread of both rows",
        *measured_lines(report),
    ]


def measured_lines(report: Mapping[str, Any]) -> list[str]:
    """Return place and date of the measurements, a line for each occasion."""
    occasions: dict[str, list[str]] = {}
    for name, row in report["rows"].items():
        by = row["measured"]
        versions = ", ".join(f"{package} {version}" for package, version in by["versions"].items())
        occasion = f"{by['machine']}; {versions}; {by['date']}"
        occasions.setdefault(occasion, []).append(name)
    if len(occasions) == 1:
        return [f"- {occasion}" for occasion in occasions]
    return [f"- {occasion}: {', '.join(names)}" for occasion, names in occasions.items()]


def into_page(text: str, report: Mapping[str, Any]) -> str:
    """Return a page of the docs with the text between its two marks replaced by `report`."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    verdicts = ["## Verdicts", "", *summary(report), "", *verdict_table(report), ""]
    made = [*tables(report), *verdicts, "## Protocol", "", *protocol_lines(report)]
    return before + BEGIN + "\n\n" + "\n".join(made) + "\n\n" + END + after


def plot(path: Path, report: Mapping[str, Any]) -> None:
    """Plot a panel per table: FDD of every seed and its mean, the paper's FID on the right axis."""
    tables = {row["table"] for row in report["rows"].values()}
    figure = Figure(figsize=(13, 15), dpi=100, facecolor="white", layout="constrained")
    cells = figure.add_gridspec(3, 2)
    places = (cells[0, 0], cells[0, 1], cells[1, 0], cells[1, 1], cells[2, :])
    handles: dict[str, Any] = {}
    for (table, title), place in zip(TITLES.items(), places, strict=True):
        if table in tables:
            rows = [row for row in report["rows"].values() if row["table"] == table]
            axes = figure.add_subplot(place)
            handles |= {handle.get_label(): handle for handle in panel(axes, title, rows)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    images.save_figure(path, figure)


def panel(axes: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Plot one table; return the entries of the legend. Zero is not on the axes: only the order
    and the spread can be compared."""
    ours, theirs = "#0072B2", "#D55E00"
    places = range(len(rows))
    means = [row["frechet_distance"]["mean"] for row in rows]
    spreads = [row["frechet_distance"]["standard_deviation"] or 0.0 for row in rows]
    for place, row in zip(places, rows, strict=True):
        values = list(row["frechet_distance"]["values"].values())
        axes.plot([place - 0.12] * len(values), values, ".", color=ours, alpha=0.45)
    axes.errorbar(
        [place - 0.12 for place in places],
        means,
        spreads,
        fmt="o",
        color=ours,
        capsize=4,
        label="FDD, mean and spread (left)",
    )
    if max(means) > WIDE * min(means):
        # One row far off would press all others onto a line.
        axes.set_yscale("log")
        axes.set_ylim(0.8 * min(means), 1.3 * max(map(sum, zip(means, spreads, strict=True))))
        ticks = [tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20) if tick > 0.8 * min(means)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_title(title, fontsize=11)
    labels = [row["label"].replace(", λ2", "\nλ2").replace(" + ", "\n+ ") for row in rows]
    axes.set_xticks(places, labels, fontsize=8, rotation=40, ha="right")
    axes.set_ylabel("FDD", color=ours)
    axes.grid(True, axis="y", alpha=0.25)
    handles = list(axes.get_legend_handles_labels()[0])
    quoted = [(place + 0.12, row["fid"]) for place, row in zip(places, rows, strict=True)]
    quoted = [(place, fid) for place, fid in quoted if fid is not None]
    if quoted:
        right = axes.twinx()
        right.plot(*zip(*quoted, strict=True), "D", color=theirs, label="paper, FID (right)")
        right.set_ylabel("FID-50K", color=theirs)
        handles += right.get_legend_handles_labels()[0]
    return handles


def main(run: str, docs: str) -> None:
    report = json.loads(Path(run, "report.json").read_text())
    known = Path(docs, "roadmap.json")
    earlier = json.loads(known.read_text()) if known.exists() else report
    if names := kept(earlier, report):
        print(f"kept from {known}, as not run again: {', '.join(names)}")
    try:
        report = merged(earlier, report)
    except ValueError as error:
        sys.exit(f"error: {error}")
    files.write_json(known, report)
    plot(Path(docs, "images", "roadmap_tables.png"), report)
    page = Path(docs, "roadmap.md")
    files.write_text(page, into_page(page.read_text(), report))


if __name__ == "__main__":
    main(*sys.argv[1:])
