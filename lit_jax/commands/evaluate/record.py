"""metrics.json: the scores, and everything they depend on; and the table for the screen."""

from __future__ import annotations

import platform
from typing import Any

import jax
import numpy as np
import PIL

from lit_jax.commands.evaluate.inputs import Samples
from lit_jax.config.evaluate import USUAL_IMAGES
from lit_jax.evaluation.image_sets import by
from lit_jax.evaluation.measuring import Measured
from lit_jax.evaluation.network import Network
from lit_jax.evaluation.reference import Known, Reference
from lit_jax.evaluation.results import (
    NEIGHBOURS,
    SUBSET_SEED,
    SUBSET_SIZE,
    SUBSETS,
    TITLES,
    Scores,
    count_warnings,
    mean_mismatch,
    mismatch_warnings,
)
from lit_jax.version import VERSION

EVALUATOR = "ADM definitions, lit_jax"
ADM_PREPROCESSING = "tf1"


def make_record(
    network: Network,
    reference: Reference,
    samples: Samples,
    measured: Measured,
    known: Known,
    scores: Scores,
    request: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of metrics.json. Nothing in it changes between two runs of one request on
    the same machine; what is not known is None."""
    mismatch, late = None, []
    if known.images is not None:
        mismatch = mean_mismatch(known.statistics, known.images)
        late = mismatch_warnings(mismatch)
    kept = None if known.kept_KxD is None else len(known.kept_KxD)
    return {
        "evaluator": EVALUATOR,
        "metrics": scores.values,
        "absent": scores.absent,
        "warnings": early_warnings(network, reference, samples) + late,
        "samples": {
            "path": samples.images.name,
            "fingerprint": request["samples_fingerprint"],
            "images_sha256": measured.images_sha256,
            "count": measured.count,
            "size": list(samples.images.size),
            "made_by": samples.record,
            **samples.sampling,
        },
        "reference": {
            "path": reference.name,
            "kind": reference.kind,
            "fingerprint": request["reference_fingerprint"],
            "images_sha256": known.images_sha256,
            "count": known.statistics.count,
            "pairwise_count": kept,
            "resolution": reference.resolution or None,
            "size": _size_of(reference),
            "inception_sha256": None if _is_unsigned(reference) else network.sha256,
            "mean_mismatch": mismatch,
        },
        "inception": {"path": network.name, **network.identity()},
        "definitions": {
            "covariance": "ddof 1, float64",
            "inception_score_splits": request["is_splits"],
            "inception_score_logits": f"{network.config.num_logits}, without bias",
            "neighbours": NEIGHBOURS,
            "kid_kernel": "(x.y / d + 1)^3",
            "kid_subsets": [SUBSETS, SUBSET_SIZE, SUBSET_SEED],
        },
        "devices": measured.devices,
        "versions": {
            "lit_jax": VERSION,
            "jax": jax.__version__,
            "jaxlib": jax.lib.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
        "request": request,
    }


def _is_unsigned(reference: Reference) -> bool:
    """Return whether nothing says which network the statistics come from."""
    return reference.given is not None and reference.about is None


def _size_of(reference: Reference) -> list[int] | None:
    if reference.images is not None:
        return list(reference.images.size)
    return None if reference.about is None else list(reference.about["size"])


def early_warnings(network: Network, reference: Reference, samples: Samples) -> list[str]:
    """Return everything a reader of the scores has to know before comparing them, as far as it is
    known before they are."""
    found = count_warnings(samples.images.count, network.dimensions, "samples")
    found += samples.warnings
    size = _size_of(reference)
    if size is not None and tuple(size) != samples.images.size:
        found.append(
            f"samples have {by(samples.images.size)} pixels, the reference {by(tuple(size))}:"
            " their resizing to 299 x 299 differs"
        )
    return found + reference_warnings(network, reference)


def reference_warnings(network: Network, reference: Reference) -> list[str]:
    """Return what there is to say whatever the samples are."""
    found = []
    count = reference.images.count if reference.images is not None else None
    if reference.given is not None:
        count = reference.given.count
    if count is not None:
        found += count_warnings(count, network.dimensions, "reference images")
    found += reference.warnings
    if network.config.width_divisor != 1:
        found.append(
            f"{network.name} is an Inception of 1/{network.config.width_divisor} of the width, for"
            " tests: its scores can be compared with no others"
        )
    if network.config.preprocessing != ADM_PREPROCESSING:
        found.append(
            f"preprocessing {network.config.preprocessing!r} is not that of the ADM suite"
            f" ({ADM_PREPROCESSING!r}): do not compare with published numbers"
        )
    if _is_unsigned(reference):
        found.append(
            f"{reference.name} does not say which network its statistics come from: that it is"
            f" {network.name} is taken on trust"
        )
    kept = len(reference.kept)
    if kept not in (0, USUAL_IMAGES):
        found.append(
            f"precision, recall and KID use {kept:,} reference images; the ADM suite uses"
            f" {USUAL_IMAGES:,}"
        )
    return found


def table(record: dict[str, Any]) -> list[str]:
    """Return the scores for the screen, one line each, and the warnings."""
    metrics, absent = record["metrics"], record["absent"]
    lines = [f"{record['evaluator']}: {record['samples']['path']} ({record['samples']['count']:,}"]
    lines[0] += f" samples) against {record['reference']['path']}"
    for name, title in TITLES.items():
        value = metrics[name]
        shown = f"{value:12.6g}" if value is not None else f"{'-':>12}  ({absent[name]})"
        lines.append(f"  {title:<20}{shown}")
    return lines + [f"warning: {text}" for text in record["warnings"]]
