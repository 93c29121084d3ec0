"""The LiT paper's Tables 1-4 in miniature, and LiT's siblings, on a CPU: `make roadmap`.

Every row of `configs/digits_roadmap.py` is trained and sampled over several seeds with the same
jobs as everywhere else, one run per core; then the tables, a plot and the comparison with the paper
are written (`report.py`). A finished run leaves a small file, so that the same command goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(ROOT))

from absl import logging

from configs import digits_roadmap
from demo.digits import dataset
from demo.digits.teacher import convert_teacher
from demo.roadmap import report
from demo.roadmap.runs import SOURCE, Run, is_finished, needs, run_all
from lit_jax.runs.progress import duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/roadmap", help="folder of the results")
    parser.add_argument("--rows", default="", help="comma-separated rows (default: all)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--steps", type=int, help="training steps of every row (default: config)")
    parser.add_argument("--count", type=int, default=500, help="images per run")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    try:
        run(args)
    except (ValueError, OSError, FloatingPointError, BrokenProcessPool) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")


def run(args: argparse.Namespace) -> None:
    """Data and models, the runs, the report."""
    began = time.perf_counter()
    out = Path(args.out)
    rows, seeds = chosen_rows(args.rows), numbers("--seeds", args.seeds)
    if args.workers < 1 or args.count < 2:
        raise ValueError(f"--workers {args.workers} must be at least 1, --count {args.count} 2")
    runs = [Run(row, seed, args.steps, args.count, str(out)) for seed in seeds for row in rows]
    finished = [run for run in runs if is_finished(run)]
    dataset.prepare(out / "data")
    convert_teacher(out / "models" / digits_roadmap.CONVERGED, "teacher")
    pending = [run for run in runs if run not in finished]
    if any(needs(out, run) - {digits_roadmap.CONVERGED} for run in pending):
        pending.insert(0, Run(SOURCE, 0, None, 0, str(out)))
    print(f"\n=== {len(runs)} runs, {len(finished)} are there already; {args.workers} at a time")
    run_all(pending, out, args.workers)
    results = [json.loads(run.result.read_text()) for run in runs]
    reference = report.reference_scores(out / "data")
    report.write(out, results, reference)
    print(f"\n{(out / 'report.md').read_text()}")
    print(f"wrote {out}/report.md, report.json, roadmap.png")
    print(f"whole roadmap: {duration(time.perf_counter() - began)}")


def chosen_rows(text: str) -> list[str]:
    """Return the rows to run: all, or those named, each replaced by the row it is a copy of."""
    table = digits_roadmap.ROWS
    names = text.split(",") if text else list(table)
    if unknown := [name for name in names if name not in table]:
        raise ValueError(f"--rows: unknown {', '.join(unknown)} (known: {', '.join(table)})")
    return list(dict.fromkeys(table[name].same_as or name for name in names))


def numbers(flag: str, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"{flag} {text!r} is not a comma-separated list of integers") from None


if __name__ == "__main__":
    main()
