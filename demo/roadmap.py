"""The LiT paper's Tables 1-4 in miniature, on a CPU, in about an hour: `make roadmap`.

Every row of `configs/digits_roadmap.py` is trained and sampled over several seeds with the same
jobs as everywhere else, one run per core; then the tables, a plot and the comparison with the paper
are written (`roadmap_report.py`). A finished run leaves a small file, so that the same command goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import roadmap_report  # noqa: E402
from absl import logging  # noqa: E402
from digits_demo import convert_teacher  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from configs import digits_roadmap  # noqa: E402
from lit_jax import files  # noqa: E402
from lit_jax.config import TrainConfig, from_mapping  # noqa: E402
from lit_jax.data import pipeline  # noqa: E402
from lit_jax.evaluation import classifier, scores  # noqa: E402
from lit_jax.jobs.sample import Protocol, sample  # noqa: E402
from lit_jax.jobs.train import train  # noqa: E402
from lit_jax.training.metrics import duration  # noqa: E402
from lit_jax.weights import folder  # noqa: E402
from lit_jax.weights.fingerprint import params_sha256  # noqa: E402

BATCH = 250  # images drawn at once
SOURCE = "source"


@dataclass(frozen=True)
class Run:
    """One training run with its samples: a row and a seed, or the source model."""

    row: str
    seed: int
    steps: int | None  # None: as the config says
    count: int
    out: str

    @property
    def name(self) -> str:
        return f"{self.row}_seed{self.seed}"

    @property
    def result(self) -> Path:
        return Path(self.out) / "results" / f"{self.name}.json"


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


def run(args: argparse.Namespace) -> None:
    """Data and models, the runs, the report."""
    began = time.perf_counter()
    out = Path(args.out)
    rows, seeds = chosen_rows(args.rows), numbers("--seeds", args.seeds)
    if args.workers < 1 or args.count < 2:
        raise ValueError(f"--workers {args.workers} must be at least 1, --count {args.count} 2")
    runs = [Run(row, seed, args.steps, args.count, str(out)) for seed in seeds for row in rows]
    finished = [run for run in runs if is_finished(run)]
    pipeline.prepare("digits", out / "data")
    convert_teacher(out / "models" / digits_roadmap.CONVERGED, "teacher")
    pending = [run for run in runs if run not in finished]
    if any(needs(out, run) - {digits_roadmap.CONVERGED} for run in pending):
        pending.insert(0, Run(SOURCE, 0, None, 0, str(out)))
    print(f"\n=== {len(runs)} runs, {len(finished)} are there already; {args.workers} at a time")
    run_all(pending, out, args.workers)
    results = [json.loads(run.result.read_text()) for run in runs]
    reference = roadmap_report.reference_scores(out / "data")
    roadmap_report.write(out, results, reference)
    print(f"\n{(out / 'report.md').read_text()}")
    print(f"wrote {out}/report.md, report.json, roadmap.png")
    print(f"whole roadmap: {duration(time.perf_counter() - began)}")


def chosen_rows(text: str) -> list[str]:
    """The rows to run: all, or those named; a row that is another one's run stands for it."""
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


def config_of(run: Run) -> TrainConfig:
    """The row's config with the paths, seed and steps of this run."""
    config: ConfigDict = digits_roadmap.get_config(run.row)
    config.seed = run.seed
    config.data.data_dir = str(Path(run.out) / "data")
    if run.steps is not None:
        config.total_steps = config.checkpoint_every = run.steps
        warmup = min(config.optimizer.warmup_steps, run.steps // 4)
        config.optimizer.warmup_steps = warmup
    for group, key in (("inherit", "source"), ("distill", "teacher")):
        if model := config[group][key]:
            config[group][key] = str(Path(run.out) / "models" / Path(model).name)
    return from_mapping(TrainConfig, config.to_dict())


def protocol_of(run: Run) -> Protocol:
    """Without guidance, as in the paper's Tables 1-4."""
    return Protocol(sampler="ddim", steps="ddim10", seed=run.seed)


def request_of(run: Run) -> dict[str, Any]:
    """What a result depends on; as it reads from JSON. Paths are left out: folders may move."""
    train = dataclasses.asdict(config_of(run))
    del train["data"]["data_dir"]
    for group, key in (("inherit", "source"), ("distill", "teacher")):
        train[group][key] = Path(train[group][key]).name
    request = {"train": train, "protocol": dataclasses.asdict(protocol_of(run))}
    return json.loads(json.dumps(request | {"count": run.count}))


def is_finished(run: Run) -> bool:
    """Whether the result is there; ValueError when it is that of another request."""
    if not run.result.exists():
        return False
    found, wanted = json.loads(run.result.read_text())["request"], request_of(run)
    if found != wanted:
        old, new = (dict(flat(request)) for request in (found, wanted))
        differing = [f"{k} {old.get(k)!r}, now {v!r}" for k, v in new.items() if old.get(k) != v]
        raise ValueError(
            f"{run.result} was made with {'; '.join(differing)}; choose another --out, or remove it"
        )
    return True


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dicts as ("a.b.c", value)."""
    pairs = []
    for key, value in tree.items():
        inner = isinstance(value, dict)
        pairs += flat(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return pairs


def needs(out: Path, run: Run) -> set[str]:
    """Models that this run starts from or learns from and that are not there yet."""
    if run.row == SOURCE:
        return set()
    config = config_of(run)
    models = {Path(p).name for p in (config.inherit.source, config.distill.teacher) if p}
    return {name for name in models if not (out / "models" / name).exists()}


def run_all(pending: Sequence[Run], out: Path, workers: int) -> None:
    """All runs, each in one thread of one process; the first failure ends the others."""
    # A network this small gains little from a second thread, two runs at once gain nearly twofold.
    os.environ["NPROC"] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    # Rows that differ in their source or policy only are the same program.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((out / "cache").absolute())
    waiting, running = list(pending), dict[Future[dict[str, Any]], Run]()
    progress = Progress(pending)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            while waiting or running:
                ready = [run for run in waiting if not needs(out, run)]
                for run in itertools.islice(ready, workers - len(running)):
                    waiting.remove(run)
                    running[pool.submit(execute, run)] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    progress.line(running.pop(future), future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Progress:
    """One line per finished run, with the remaining time from the work of the runs so far."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._work = {run: self.work(run) for run in runs}
        self._done: list[Run] = []
        self._began = time.perf_counter()

    @staticmethod
    def work(run: Run) -> float:
        """Network evaluations: three per image and step, one more of a teacher, and sampling."""
        config = config_of(run)
        per_image = 4 if config.distill.teacher else 3
        drawn = run.count * protocol_of(run).function_evaluations()
        return config.total_steps * config.batch_size * per_image + drawn

    def line(self, run: Run, result: dict[str, Any]) -> None:
        self._done.append(run)
        elapsed = time.perf_counter() - self._began
        spent = sum(self._work[run] for run in self._done)
        eta = elapsed / spent * (sum(self._work.values()) - spent)
        parts = [f"[{len(self._done)}/{len(self._work)}] {run.name}"]
        if "frechet_distance" in result:
            parts.append(f"FDD {result['frechet_distance']:.3f}")
            parts.append(f"accuracy {result['accuracy']:.1%}")
        parts += [duration(result["seconds"]), f"ETA {duration(eta)}"]
        print("  ".join(parts), flush=True)


def execute(run: Run) -> dict[str, Any]:
    """One run in a process of its own: trains, samples, scores, leaves the result."""
    logging.set_verbosity(logging.ERROR)
    began = time.perf_counter()
    config, out = config_of(run), Path(run.out)
    workdir = out / "work" / run.name
    train(config, workdir, say=quiet)
    reached = max((int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")), default=0)
    if reached != config.total_steps:
        raise ValueError(f"{run.name} was stopped at step {reached}; the same command resumes it")
    if run.row == SOURCE:
        save_sources(workdir, out / "models")
        shutil.rmtree(workdir)
        return {"seconds": time.perf_counter() - began}
    trained = time.perf_counter()
    drawn = out / "samples" / run.name
    shutil.rmtree(drawn, ignore_errors=True)  # without a result they are of an interrupted call
    sample(workdir, drawn, run.count, protocol_of(run), batch_size=BATCH, say=quiet)
    images = np.load(drawn / "samples.npz")
    real, judge = real_and_judge(out / "data")
    result = {
        "row": run.row,
        "seed": run.seed,
        "frechet_distance": scores.digit_frechet_distance(real, images["arr_0"]),
        "accuracy": classifier.conditional_accuracy(judge, images["arr_0"], images["labels"]),
        "weights_sha256": params_sha256(folder.load_model_dir(workdir)[1]),
        "train_seconds": trained - began,
        "seconds": time.perf_counter() - began,
        "request": request_of(run),
    }
    files.write_json(run.result, result)
    shutil.rmtree(workdir)  # the result and the samples stay
    return result


def quiet(text: str) -> None:
    """Several runs share one screen: their own lines are left out."""


def save_sources(workdir: Path, models: Path) -> None:
    """Model folders of the source's checkpoints: the EMA, and of one also what it averages."""
    config = folder.read_config(workdir)
    for step in digits_roadmap.SOURCE_STEPS:
        arrays = workdir / "checkpoints" / str(step) / "state"
        with ocp.PyTreeCheckpointer() as checkpointer:
            state = checkpointer.restore(arrays.absolute())
        for name, entry in ((f"source{step}", "ema"), (f"source{step}_model", "params")):
            if entry == "ema" or name == digits_roadmap.NOT_EMA:
                provenance = {"source": f"digits_roadmap.py:source, step {step}, {entry}"}
                target = models / name
                folder.save_model_dir(target, config, state[entry], provenance, overwrite=True)


@functools.cache
def real_and_judge(data_dir: Path) -> tuple[np.ndarray, classifier.Judge]:
    """The training digits, and the judge that has seen only held-out digits."""
    real, _ = pipeline.load_split("digits", data_dir, "train")
    return real, classifier.train_judge(*pipeline.load_split("digits", data_dir, "heldout"))


if __name__ == "__main__":
    main()
