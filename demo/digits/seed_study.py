"""The digits demo over several seeds: mean, spread, and which part of the order is beyond it.

    python -m demo.digits.seed_study --seeds 0,1,2 --out runs/demo_seeds --docs docs

Runs `python -m demo.digits` once per seed (of training and of sampling; the shipped teacher is the
same for all), then writes `seed_study.json`, a table in Markdown and a plot. A finished seed is not
run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_jax.storage import files
from lit_jax.storage import png as images

ROOT = Path(__file__).resolve().parents[2]
SCORES = {
    "frechet_distance": "FDD, DDPM",
    "ddim_frechet_distance": "FDD, DDIM",
    "accuracy": "accuracy, DDPM",
    "ddim_accuracy": "accuracy, DDIM",
}
# The paper's order, in distance: the first of a pair is expected to be the smaller.
PAIRS = (("lit_distilled", "lit_inherited"), ("lit_inherited", "lit_scratch"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", default="runs/demo_seeds", help="folder of the runs")
    parser.add_argument("--docs", default="docs", help="folder of the summary")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if len(seeds) < 2:
        parser.error(f"--seeds {args.seeds}: a spread needs at least two")
    found = [report_of(seed, Path(args.out) / f"seed{seed}") for seed in seeds]
    study = summarise(seeds, found)
    docs = Path(args.docs)
    files.write_text(docs / "seed_study.json", json.dumps(study, indent=2) + "\n")
    files.write_text(docs / "seed_study.md", to_markdown(study))
    plot(docs / "images" / "seed_study.png", study)
    print(to_markdown(study))


def report_of(seed: int, out: Path) -> dict[str, Any]:
    """Return the report of one seed; run the demo if the report is missing."""
    if not (out / "report.json").exists():
        command = [sys.executable, "-m", "demo.digits"]
        subprocess.run([*command, "--seed", str(seed), "--out", str(out)], cwd=ROOT, check=True)
    return json.loads((out / "report.json").read_text())


def summarise(seeds: list[int], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Per model and score the values, their mean and standard deviation; per pair the differences
    of FDD within a seed."""
    table = {
        row["name"]: {score: [r["rows"][i][score] for r in found] for score in SCORES}
        for i, row in enumerate(found[0]["rows"])
    }
    models = {
        name: {score: _spread(values) for score, values in scores.items()}
        for name, scores in table.items()
    }
    differences = {
        f"{second} - {first}": {
            score: _spread(
                [b - a for a, b in zip(table[first][score], table[second][score], strict=True)]
            )
            for score in ("frechet_distance", "ddim_frechet_distance")
        }
        for first, second in PAIRS
    }
    return {
        "seeds": seeds,
        "count": found[0]["protocol"]["count"],
        "steps": found[0]["rows"][-1]["steps"],
        "models": models,
        "differences": differences,
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "values": values,
        "mean": statistics.mean(values),
        "standard_deviation": statistics.stdev(values),
    }


def to_markdown(study: dict[str, Any]) -> str:
    """Return the two tables of the study."""
    lines = [
        "# The digits demo over seeds",
        "",
        f"Seeds {', '.join(map(str, study['seeds']))}; mean and standard deviation over seeds;"
        f" {study['steps']} training steps per student, {study['count']} images per model and"
        " sampler. FDD is the Fréchet digit distance of `demo/digits/features.py`, lower is"
        " better. Command: `python -m demo.digits.seed_study`.",
        "",
        "| model | " + " | ".join(SCORES.values()) + " |",
        "|---" * (len(SCORES) + 1) + "|",
    ]
    for name, scores in study["models"].items():
        cells = [_cell(scores[score], percent="accuracy" in score) for score in SCORES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| difference within a seed | FDD, DDPM | FDD, DDIM |", "|---|---|---|"]
    for pair, scores in study["differences"].items():
        cells = [_cell(spread, percent=False) for spread in scores.values()]
        lines.append(f"| {pair} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n![FDD per seed](images/seed_study.png)\n"


def _cell(spread: dict[str, Any], percent: bool) -> str:
    factor, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    mean, deviation = factor * spread["mean"], factor * spread["standard_deviation"]
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}{unit}"


def plot(path: Path, study: dict[str, Any]) -> None:
    """Plot a dot per seed and a bar at the mean: FDD of every model under both samplers."""
    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, score in zip(panels, ("frechet_distance", "ddim_frechet_distance"), strict=True):
        for index, (_, scores) in enumerate(study["models"].items()):
            values = scores[score]["values"]
            axes.plot([index] * len(values), values, "o", color="#1f77b4", alpha=0.7)
            axes.hlines(scores[score]["mean"], index - 0.25, index + 0.25, color="#333333")
        axes.set_xticks(range(len(study["models"])), study["models"], fontsize=8)
        axes.set_title(SCORES[score])
        axes.set_ylim(bottom=0)
        axes.grid(True, axis="y", alpha=0.25)
    images.save_figure(path, figure)


if __name__ == "__main__":
    main()
