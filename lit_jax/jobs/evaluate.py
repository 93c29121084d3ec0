"""`python -m lit_jax evaluate`: FID, sFID, Inception Score, precision, recall and KID.

Compares samples with a reference in the features of the FID Inception, by the definitions of the
ADM evaluation suite, and writes one JSON file with the scores and all that they depend on. Work
in progress is kept in a folder beside it: the same command again goes on where it was stopped.

Reads top-down: `evaluate` is the table of contents.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax import files
from lit_jax.config.evaluate import EvaluateConfig
from lit_jax.evaluation.measuring import merge_parts, missing_parts, part_spans, write_parts
from lit_jax.evaluation.network import FeatureExtractor, Network, read_network
from lit_jax.evaluation.reference import (
    Reference,
    check_cache,
    is_cached,
    open_reference,
    read_known,
    write_cache,
)
from lit_jax.evaluation.results import score
from lit_jax.jobs.evaluate_inputs import Samples, open_samples
from lit_jax.jobs.evaluate_record import EVALUATOR, make_record, table
from lit_jax.jobs.sample import barrier, say_on_first_process
from lit_jax.training.metrics import duration

Say = Callable[[str], None]
Draw = Callable[[Path], Path]

REQUEST, PLAN, REFERENCE, SAMPLES = "request.json", "plan.json", "reference", "samples"


@dataclass(frozen=True)
class Run:
    """What the checks have established. `work` holds what is unfinished."""

    config: EvaluateConfig
    network: Network
    reference: Reference
    samples: Samples
    out: Path
    work: Path
    say: Say


def evaluate(
    config: EvaluateConfig, draw: Draw | None = None, say: Say = say_on_first_process
) -> Path:
    """Writes the scores of `config.samples` against `config.reference` into the file `config.out`,
    which is returned.

    `draw(folder)` makes the samples of `config.model` there and returns the folder. The same call
    again resumes; on a finished output it prints the table once more. Every process of a multi-host
    job makes the same call; `out` lies in a folder that all of them see.

    Raises ValueError before compiling for whatever cannot work, and for an `out` of another
    request.
    """
    out = Path(config.out).expanduser()
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the name of a file, as {out}/metrics.json")
    network = read_network(config.inception)
    reference = open_reference(config.reference, network)
    work = out.with_name(f"{out.name}.work")
    if draw is not None:
        check_before_drawing(config, network, reference, out, work)
        samples = open_samples(draw(out.with_suffix(".samples")))
    else:
        samples = open_samples(config.samples)
    check_counts(config, samples)
    run = Run(config, network, reference, samples, out, work, say)
    if not begin(run):
        barrier("nothing to evaluate")
        return out
    measure(run)
    barrier("all images are measured")
    if jax.process_index() == 0:
        finish(run)
    barrier("the scores are written")
    return out


def check_before_drawing(
    config: EvaluateConfig, network: Network, reference: Reference, out: Path, work: Path
) -> None:
    """What rules out the scores whatever the samples will be: an output or a working folder of
    another request, a cache that cannot be written."""
    request = request_of(config, network, reference)
    for path, content in ((out, _stored(out)), (work, _stored_work(work))):
        if content is not None:
            _require_same(path, content, request, request.keys())
    if not is_cached(reference, request["reference_fingerprint"]):
        check_cache(reference)


def check_counts(config: EvaluateConfig, samples: Samples) -> None:
    """What the numbers of images rule out, before hours are spent on their features."""
    count = samples.images.count
    if count < max(2, config.is_splits):
        raise ValueError(
            f"{samples.images.name} holds {count} images, which leaves some of"
            f" {config.is_splits} splits of the Inception Score empty; use --is_splits"
            f" {max(1, count)} or fewer, and at least 2 images"
        )


# --- the request an output belongs to ---


def begin(run: Run) -> bool:
    """Whether there is anything to do. Process 0 looks, and leaves request and plan in the working
    folder for the others."""
    if jax.process_index() == 0:
        prepare(run)
    barrier("the request is written")
    return (run.work / PLAN).exists()


def prepare(run: Run) -> None:
    """Checks the output against the request; then writes the request, or says the scores that are
    there already. Raises ValueError when it is there for another request."""
    run.say("hashing samples and reference")
    request = request_of(run.config, run.network, run.reference)
    request["samples_fingerprint"] = run.samples.images.fingerprint()
    content, claimed = _stored(run.out), _stored_work(run.work)
    if content is not None:
        _require_same(run.out, content, request, content["request"].keys() | request.keys())
        clean_up(run.work)
        run.say(f"nothing to do: {run.out} holds these scores")
        for line in table(content):
            run.say(line)
        return
    cached = is_cached(run.reference, request["reference_fingerprint"])
    if not cached:
        check_cache(run.reference)
    if claimed is not None:
        _require_same(run.work, claimed, request, claimed["request"].keys() | request.keys())
    files.write_json(run.work / REQUEST, {"request": request})
    files.write_json(run.work / PLAN, {"measure_reference": not cached})


def clean_up(work: Path) -> None:
    """Removes the working folder; the request, which says whose it is, goes last."""
    if not work.exists():
        return
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != REQUEST:
            entry.unlink()
    (work / REQUEST).unlink(missing_ok=True)
    work.rmdir()


def request_of(config: EvaluateConfig, network: Network, reference: Reference) -> dict[str, Any]:
    """Everything besides the samples that decides the scores, by content: the same images may lie
    elsewhere."""
    return {
        "evaluator": EVALUATOR,
        "reference_fingerprint": reference.fingerprint(),
        "resolution": config.reference.resolution,
        "reference_images": config.reference.images,
        "inception_sha256": network.sha256,
        "preprocessing": network.config.preprocessing,
        "is_splits": config.is_splits,
    }


def _stored(out: Path) -> dict[str, Any] | None:
    """The result that is there already; ValueError for a file that is none."""
    if not out.exists():
        return None
    content = _read_json(out)
    if not isinstance(content.get("request"), dict):
        raise ValueError(f"{out} exists and is no result of this job; choose another --out")
    return content


def _stored_work(work: Path) -> dict[str, Any] | None:
    """The request of unfinished work; ValueError for a folder that is none."""
    if (work / REQUEST).exists():
        return _read_json(work / REQUEST)
    # A run that was killed at its first file leaves a hidden one.
    if work.exists() and any(path.name[0] != "." for path in work.iterdir()):
        raise ValueError(f"{work} exists and is no working folder of this job; move it")
    return None


def _require_same(
    path: Path, content: dict[str, Any], request: dict[str, Any], names: Iterable[str]
) -> None:
    found = content["request"]
    differing = [
        f"{name}={found.get(name)} (asked for: {request.get(name)})"
        for name in sorted(names)
        if found.get(name) != request.get(name)
    ]
    if differing:
        raise ValueError(
            f"{path} belongs to another request: {', '.join(differing)}; choose another --out, or"
            " remove it"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} exists and is not JSON ({error}); move it") from error
    return content if isinstance(content, dict) else {}


# --- features ---


def measure(run: Run) -> None:
    """Writes the parts of this host of reference and samples that are missing."""
    share = jax.process_index(), jax.process_count()
    sets = [(SAMPLES, run.samples.images, np.arange(run.samples.images.count), True)]
    if _read_json(run.work / PLAN)["measure_reference"]:
        assert run.reference.images is not None
        sets.insert(0, (REFERENCE, run.reference.images, run.reference.kept, False))
    if not any(missing_parts(run.work / name, images.count) for name, images, *_ in sets):
        return
    # No batch is larger than the largest part.
    largest = max(
        last - first for _, images, *_ in sets for first, last in part_spans(images.count)
    )
    extractor = FeatureExtractor(run.network, min(run.config.inception_batch_size, largest))
    for name, images, kept, with_logits in sets:
        progress = Progress(f"{name}: Inception features", images.count, share[1], run.say)
        write_parts(images, extractor, run.work / name, kept, with_logits, share, progress)
        progress.end()


class Progress:
    """Counts images of this host; says speed and remaining time now and then."""

    INTERVAL = 15.0  # seconds

    def __init__(self, what: str, count: int, hosts: int, say: Say) -> None:
        self._what, self._total, self._say = what, -(-count // hosts), say
        self._done = 0
        self._began = self._last = time.perf_counter()

    def __call__(self, images: int) -> None:
        self._done += images
        now = time.perf_counter()
        if now - self._last >= self.INTERVAL:
            self._last = now
            speed = self._done / (now - self._began)
            left = duration(max(self._total - self._done, 0) / speed)
            self._say(
                f"{self._what}: {self._done:,} of about {self._total:,}, {speed:.3g} images/s,"
                f" ETA {left}"
            )

    def end(self) -> None:
        seconds = time.perf_counter() - self._began
        self._say(f"{self._what}: {self._done:,} images in {duration(seconds)}")


# --- scores ---


def finish(run: Run) -> None:
    """Merges the parts, keeps the statistics of the reference, writes the scores."""
    request = _read_json(run.work / REQUEST)["request"]
    if _read_json(run.work / PLAN)["measure_reference"]:
        assert run.reference.images is not None
        measured = merge_parts(run.work / REFERENCE, run.reference.images.count)
        write_cache(run.reference, measured, request["reference_fingerprint"], run.work)
        run.say(f"kept the statistics of the reference in {run.reference.cache}")
    known = read_known(run.reference)
    measured = merge_parts(run.work / SAMPLES, run.samples.images.count)
    scores = score(measured, known, run.config.is_splits, run.say)
    record = make_record(run.network, run.reference, run.samples, measured, known, scores, request)
    # Written in the working folder first, so that a kill leaves nothing half-done beside `out`.
    files.write_json(run.work / run.out.name, record)
    os.replace(run.work / run.out.name, run.out)
    clean_up(run.work)
    for line in table(record):
        run.say(line)
    run.say(f"wrote {run.out}")
