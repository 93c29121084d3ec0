"""`python -m lit_jax evaluate`: FID, sFID, Inception Score, precision, recall and KID.

Compares samples with a reference in the features of the FID Inception, by the definitions of the
ADM evaluation suite, and writes one JSON file with the scores and all that they depend on. Work
in progress is kept in a folder beside it: the same command again goes on where it was stopped.

Reads top-down: `evaluate` is the table of contents.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax.commands.evaluate.inputs import Samples, open_samples
from lit_jax.commands.evaluate.record import early_warnings, make_record, reference_warnings, table
from lit_jax.commands.evaluate.request import SAMPLED, request_of
from lit_jax.commands.evaluate.self_test import self_test
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
from lit_jax.runs.hosts import Log, log_on_first_process, on_first_process
from lit_jax.runs.output import Output
from lit_jax.runs.progress import Progress

Draw = Callable[[Path], Path]

REFERENCE, SAMPLES = "reference", "samples"


@dataclass(frozen=True)
class Run:
    """Result of the checks. `cached`: statistics of the reference need not be measured."""

    config: EvaluateConfig
    network: Network
    reference: Reference
    samples: Samples
    cached: bool
    log: Log


def evaluate(
    config: EvaluateConfig, draw: Draw | None = None, log: Log = log_on_first_process
) -> Path:
    """Write the scores of `config.samples` against `config.reference` into the file `config.out`,
    which is returned.

    `draw(folder)` makes the samples of `config.model` there and returns the folder. The same call
    again resumes; on a finished output it prints the table once more. Every process of a multi-host
    job makes the same call; `out` lies in a folder that all of them see. With `config.self_test`
    nothing is written.

    Raises ValueError before compiling for a job that cannot work, and for an `out` of another
    request.
    """
    out = Path(config.out).expanduser()
    if config.self_test:
        reference_config = config.reference if config.reference.source else None
        self_test(config.inception, reference_config, config.inception_batch_size, log)
        return out
    network = read_network(config.inception)
    reference = open_reference(config.reference, network)
    if draw is not None:
        check_before_drawing(config, network, reference, out)
        for text in reference_warnings(network, reference):
            log(f"warning: {text}")
        stem = out.stem if out.suffix == ".json" else out.name
        samples = open_samples(draw(out.with_name(f"{stem}.samples")))
    else:
        samples = open_samples(config.samples)
    check_counts(config, samples)
    log("hashing samples and reference")
    request = request_of(config, network, reference)
    request["samples_fingerprint"] = samples.images.fingerprint()
    request["sample_json_sha256"] = samples.record_sha256
    with Output.beside(out, request, log=log) as output:
        if output.done:
            log(f"nothing to do: {out} holds these scores")
            show(json.loads(out.read_text()), log)
            return out
        run = prepare(Run(config, network, reference, samples, False, log), output)
        measure(run, output)
        output.close(lambda: finish(run, output))
    log(f"wrote {out}")
    return out


def check_before_drawing(
    config: EvaluateConfig, network: Network, reference: Reference, out: Path
) -> None:
    """Refuse, before samples are drawn, an output or a work folder of another request, and a cache
    that cannot be written."""
    request = request_of(config, network, reference)
    with Output.beside(out, request, ignore=SAMPLED):
        if not is_cached(reference, request["reference_fingerprint"]):
            check_cache(reference)


def check_counts(config: EvaluateConfig, samples: Samples) -> None:
    """Refuse numbers of images without scores, before hours are spent on their features."""
    count = samples.images.count
    if count < max(2, config.is_splits):
        raise ValueError(
            f"{samples.images.name} holds {count} images, which leaves some of"
            f" {config.is_splits} splits of the Inception Score empty; use --is_splits"
            f" {max(1, count)} or fewer, and at least 2 images"
        )


def prepare(run: Run, output: Output) -> Run:
    """Write the request and log what a reader of the scores should know. The run that is returned
    knows whether the reference must be measured."""

    def look() -> bool:
        cached = is_cached(run.reference, output.request["reference_fingerprint"])
        if not cached:
            check_cache(run.reference)
        return cached

    cached = on_first_process(look)
    output.begin()
    for text in early_warnings(run.network, run.reference, run.samples):
        run.log(f"warning: {text}")
    return dataclasses.replace(run, cached=cached)


# --- features ---


def measure(run: Run, output: Output) -> None:
    """Write the parts of this host of reference and samples that are missing."""
    hosts = jax.process_count()
    share = jax.process_index(), hosts
    sets = [(SAMPLES, run.samples.images, np.arange(run.samples.images.count), True)]
    if not run.cached:
        assert run.reference.images is not None
        sets.insert(0, (REFERENCE, run.reference.images, run.reference.kept, False))
    if not any(missing_parts(output.work / name, images.count) for name, images, *_ in sets):
        return
    # No batch is larger than the largest part.
    largest = max(
        last - first for _, images, *_ in sets for first, last in part_spans(images.count)
    )
    extractor = FeatureExtractor(run.network, min(run.config.inception_batch_size, largest))
    for name, images, kept, with_logits in sets:
        title, total = f"{name}: Inception features", -(-images.count // hosts)
        with Progress(title, total, "image", run.log) as progress:
            folder = output.work / name
            write_parts(images, extractor, folder, kept, with_logits, share, progress)
        run.log(str(progress))


# --- scores ---


def finish(run: Run, output: Output) -> dict[str, Any]:
    """Merge the parts, keep the statistics of the reference, return the scores. On process 0."""
    fingerprint = output.request["reference_fingerprint"]
    if not run.cached:
        assert run.reference.images is not None
        measured = merge_parts(output.work / REFERENCE, run.reference.images.count)
        cache = write_cache(run.reference, measured, fingerprint, output.work)
        run.log(f"kept the statistics of the reference in {cache}")
    known = read_known(run.reference, fingerprint)
    measured = merge_parts(output.work / SAMPLES, run.samples.images.count)
    scores = score(measured, known, run.config.is_splits, run.log)
    record = make_record(
        run.network, run.reference, run.samples, measured, known, scores, output.request
    )
    show(record, run.log)
    return record


def show(record: dict[str, Any], log: Log) -> None:
    """Log the table of scores."""
    for line in table(record):
        log(line)
