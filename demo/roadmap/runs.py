"""The training runs of `demo/roadmap`, several at a time."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from configs import digits_roadmap
from demo.digits import classifier, dataset, features
from demo.training_runs import train_to_the_end
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.sample.job import sample
from lit_jax.config import TrainConfig, from_mapping
from lit_jax.config.protocol import Protocol
from lit_jax.config.sample import SampleConfig
from lit_jax.models import registry
from lit_jax.runs.progress import duration
from lit_jax.sampling.sampler import function_evaluations
from lit_jax.storage import files

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
    def untrained(self) -> bool:
        """True if the source itself is sampled."""
        return self.row != SOURCE and digits_roadmap.ROWS[self.row].untrained

    @property
    def result(self) -> Path:
        return Path(self.out) / "results" / f"{self.name}.json"


def config_of(run: Run) -> TrainConfig:
    """Return the row's config with the paths, seed and steps of this run."""
    config: ConfigDict
    if run.row == SOURCE:
        config = digits_roadmap.get_config(SOURCE)
    else:
        config = digits_roadmap.row_config(digits_roadmap.ROWS[run.row])
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
    """Return what a result depends on, as read from JSON, without paths: folders may move."""
    train = dataclasses.asdict(config_of(run))
    del train["data"]["data_dir"], train["data"]["kind"]
    for group, key in (("inherit", "source"), ("distill", "teacher")):
        train[group][key] = Path(train[group][key]).name
    if run.untrained:
        train["total_steps"] = 0
    request = {"train": train, "protocol": dataclasses.asdict(protocol_of(run))}
    return json.loads(json.dumps(request | {"count": run.count}))


def is_finished(run: Run) -> bool:
    """Return True if the result exists; ValueError when it is that of another request."""
    if not run.result.exists():
        return False
    found, wanted = json.loads(run.result.read_text())["request"], request_of(run)
    if found != wanted:
        old, new = (dict(flat(request)) for request in (found, wanted))
        differing = [
            f"{key} {old.get(key)!r}, now {new.get(key)!r}"
            for key in old | new
            if old.get(key) != new.get(key)
        ]
        raise ValueError(
            f"{run.result} was made with {'; '.join(differing)}; choose another --out, or remove it"
        )
    return True


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dicts as ("a.b.c", value)."""
    pairs = []
    for key, value in tree.items():
        inner = isinstance(value, dict)
        pairs += flat(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return pairs


def needs(out: Path, run: Run) -> set[str]:
    """Return the missing models that this run starts from or learns from."""
    if run.row == SOURCE:
        return set()
    config = config_of(run)
    models = {Path(p).name for p in (config.inherit.source, config.distill.teacher) if p}
    return {name for name in models if not (out / "models" / name).exists()}


def run_all(pending: Sequence[Run], out: Path, workers: int) -> None:
    """Execute all runs, each in one thread of one process. After a failure the started runs
    finish, and no other starts."""
    # A network this small gains little from a second thread, two runs at once gain nearly twofold.
    os.environ["NPROC"] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    waiting, running = list(pending), dict[Future[dict[str, Any]], Run]()
    progress = Progress(pending)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=begin_worker, initargs=(out / "cache",)
    ) as pool:
        while waiting or running:
            ready = [run for run in waiting if not needs(out, run)]
            for run in itertools.islice(ready, workers - len(running)):
                waiting.remove(run)
                running[pool.submit(execute, run)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                progress.line(running.pop(future), future.result())


def begin_worker(cache: Path) -> None:
    """Set-up of a process that runs.

    Rows that differ in their source or policy only are the same program, which is compiled once;
    jax locks nothing in that folder, so each process has its own. When the parent was killed, this
    process ends too: the next call would otherwise meet it at work in the same folders.
    """
    logging.set_verbosity(logging.ERROR)
    name = multiprocessing.current_process().name
    jax.config.update("jax_compilation_cache_dir", str((cache / name).absolute()))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
        drawn = run.count * function_evaluations(protocol_of(run))
        steps = 0 if run.untrained else config.total_steps
        return steps * config.batch_size * per_image + drawn

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
    """Train, sample and score one run, and write its result."""
    began = time.perf_counter()
    config, out = config_of(run), Path(run.out)
    workdir = out / "work" / run.name
    if run.untrained:
        save_untrained(config, workdir)
    else:
        train_to_the_end(config, workdir, log=quiet)
    if run.row == SOURCE:
        save_sources(workdir, out / "models")
        shutil.rmtree(workdir)
        return {"seconds": time.perf_counter() - began}
    trained = time.perf_counter()
    drawn = out / "samples" / run.name
    shutil.rmtree(drawn, ignore_errors=True)  # without a result they are of an interrupted call
    request = SampleConfig(
        model=str(workdir),
        out=str(drawn),
        num_samples=run.count,
        protocol=protocol_of(run),
        batch_size=BATCH,
    )
    sample(request, log=quiet)
    images = np.load(drawn / "samples.npz")
    real, judge = real_and_judge(out / "data")
    result = {
        "row": run.row,
        "seed": run.seed,
        "frechet_distance": features.digit_frechet_distance(real, images["arr_0"]),
        "accuracy": classifier.conditional_accuracy(judge, images["arr_0"], images["labels"]),
        "weights_sha256": ModelFolder(workdir).sha256,
        "train_seconds": trained - began,
        "seconds": time.perf_counter() - began,
        "request": request_of(run),
    }
    files.write_json(run.result, result)
    shutil.rmtree(workdir)  # the result and the samples stay
    jax.clear_caches()  # the programs of eighty runs would fill the memory
    return result


def save_untrained(config: TrainConfig, workdir: Path) -> None:
    """Save a model folder with the parameters of the source and the attention of the config."""
    params = ModelFolder(config.inherit.source).params()
    model = registry.model_config(config.model.name, **config.model.overrides)
    provenance = {"source": Path(config.inherit.source).name}
    save_model_dir(workdir, model, params, provenance, overwrite=True)


def quiet(text: str) -> None:
    """Several runs share one screen: their own lines are left out."""


def save_sources(workdir: Path, models: Path) -> None:
    """Model folders of the source's checkpoints: the EMA, and of one also what it averages."""
    config = ModelFolder(workdir, finished=False).config
    handler = ocp.PyTreeCheckpointHandler()
    for step in digits_roadmap.SOURCE_STEPS:
        arrays = (workdir / "checkpoints" / str(step) / "state").absolute()
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(arrays).tree
        )
        state = handler.restore(arrays, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        for name, entry in ((f"source{step}", "ema"), (f"source{step}_model", "params")):
            if entry == "ema" or name == digits_roadmap.NOT_EMA:
                provenance = {"source": f"digits_roadmap.py:source, step {step}, {entry}"}
                target = models / name
                save_model_dir(target, config, state[entry], provenance, overwrite=True)


@functools.cache
def real_and_judge(data_dir: Path) -> tuple[np.ndarray, classifier.Judge]:
    """Return the training digits, and the judge, trained on held-out digits only."""
    real, _ = dataset.load_split(data_dir, "train")
    return real, classifier.train_judge(*dataset.load_split(data_dir, "heldout"))
