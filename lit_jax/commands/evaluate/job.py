"""`python -m lit_jax evaluate`: FID, sFID, Inception Score, precision, recall and KID.

Compares samples with a reference in the features of the FID Inception, by the definitions of the
ADM evaluation suite, and writes one JSON file with the scores and all that they depend on. Work
in progress is kept in a folder beside it: the same command again goes on where it was stopped.

Reads top-down: `evaluate` is the table of contents.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from lit_jax.commands.evaluate.inputs import Samples, open_samples
from lit_jax.commands.evaluate.record import early_warnings, make_record, reference_warnings, table
from lit_jax.commands.evaluate.request import (
    clean_up,
    read_json,
    request_of,
    require_same,
    stored,
    stored_work,
)
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
from lit_jax.runs.hosts import Log, barrier, log_on_first_process
from lit_jax.runs.progress import duration
from lit_jax.runs.requests import REQUEST
from lit_jax.storage import files

Draw = Callable[[Path], Path]

PLAN, RESULT, REFERENCE, SAMPLES = "plan.json", "result.json", "reference", "samples"


@dataclass(frozen=True)
class Run:
    """What the checks have established. `work` holds what is unfinished."""

    config: EvaluateConfig
    network: Network
    reference: Reference
    samples: Samples
    out: Path
    work: Path
    log: Log


def evaluate(
    config: EvaluateConfig, draw: Draw | None = None, log: Log = log_on_first_process
) -> Path:
    """Write the scores of `config.samples` against `config.reference` into the file `config.out`,
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
        for text in reference_warnings(network, reference):
            log(f"warning: {text}")
        stem = out.stem if out.suffix == ".json" else out.name
        samples = open_samples(draw(out.with_name(f"{stem}.samples")))
    else:
        samples = open_samples(config.samples)
    check_counts(config, samples)
    run = Run(config, network, reference, samples, out, work, log)
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
    for path, content in ((out, stored(out)), (work, stored_work(work))):
        if content is not None:
            require_same(path, content, request, request.keys())
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
    """Return whether there is anything to do. Process 0 looks, and leaves request and plan in the
    working folder for the others."""
    if jax.process_index() == 0:
        prepare(run)
    barrier("the request is written")
    return (run.work / PLAN).exists()


def prepare(run: Run) -> None:
    """Check the output against the request; then writes the request, or says the scores that are
    there already. Raises ValueError when it is there for another request."""
    run.log("hashing samples and reference")
    request = request_of(run.config, run.network, run.reference)
    request["samples_fingerprint"] = run.samples.images.fingerprint()
    request["sample_json_sha256"] = run.samples.record_sha256
    content, claimed = stored(run.out), stored_work(run.work)
    if content is not None:
        require_same(run.out, content, request, content["request"].keys() | request.keys())
        clean_up(run.work)
        run.log(f"nothing to do: {run.out} holds these scores")
        for line in table(content):
            run.log(line)
        return
    cached = is_cached(run.reference, request["reference_fingerprint"])
    if not cached:
        check_cache(run.reference)
    if claimed is not None:
        require_same(run.work, claimed, request, claimed["request"].keys() | request.keys())
    files.write_json(run.work / REQUEST, {"request": request})
    files.write_json(run.work / PLAN, {"measure_reference": not cached})
    for text in early_warnings(run.network, run.reference, run.samples):
        run.log(f"warning: {text}")


# --- features ---


def measure(run: Run) -> None:
    """Write the parts of this host of reference and samples that are missing."""
    share = jax.process_index(), jax.process_count()
    sets = [(SAMPLES, run.samples.images, np.arange(run.samples.images.count), True)]
    if read_json(run.work / PLAN)["measure_reference"]:
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
        progress = Progress(f"{name}: Inception features", images.count, share[1], run.log)
        write_parts(images, extractor, run.work / name, kept, with_logits, share, progress)
        progress.end()


class Progress:
    """Counts images of this host; says speed and remaining time now and then."""

    INTERVAL = 15.0  # seconds

    def __init__(self, what: str, count: int, hosts: int, log: Log) -> None:
        self._what, self._total, self._log = what, -(-count // hosts), log
        self._done = self._found = 0
        self._began = self._last = time.perf_counter()

    def __call__(self, images: int, found: bool) -> None:
        """So many more are done; `found`: by a run before, which says nothing of the speed."""
        self._done += images
        self._found += images if found else 0
        now = time.perf_counter()
        if now - self._last >= self.INTERVAL and self._done > self._found:
            self._last = now
            speed = (self._done - self._found) / (now - self._began)
            left = duration(max(self._total - self._done, 0) / speed)
            self._log(
                f"{self._what}: {self._done:,} of about {self._total:,}, {speed:.3g} images/s,"
                f" ETA {left}"
            )

    def end(self) -> None:
        seconds = time.perf_counter() - self._began
        self._log(f"{self._what}: {self._done:,} images in {duration(seconds)}")


# --- scores ---


def finish(run: Run) -> None:
    """Merge the parts, keep the statistics of the reference, write the scores."""
    request = read_json(run.work / REQUEST)["request"]
    if read_json(run.work / PLAN)["measure_reference"]:
        assert run.reference.images is not None
        measured = merge_parts(run.work / REFERENCE, run.reference.images.count)
        cache = write_cache(run.reference, measured, request["reference_fingerprint"], run.work)
        run.log(f"kept the statistics of the reference in {cache}")
    known = read_known(run.reference, request["reference_fingerprint"])
    measured = merge_parts(run.work / SAMPLES, run.samples.images.count)
    scores = score(measured, known, run.config.is_splits, run.log)
    record = make_record(run.network, run.reference, run.samples, measured, known, scores, request)
    # Written in the working folder first, so that a kill leaves nothing half-done beside `out`.
    files.write_json(run.work / RESULT, record)
    os.replace(run.work / RESULT, run.out)
    clean_up(run.work)
    for line in table(record):
        run.log(line)
    run.log(f"wrote {run.out}")
