"""Request of an evaluation: the settings and hashes that decide the scores."""

from __future__ import annotations

from typing import Any

from lit_jax.commands.evaluate.record import EVALUATOR
from lit_jax.config.evaluate import EvaluateConfig
from lit_jax.evaluation.network import Network
from lit_jax.evaluation.reference import Reference


def request_of(config: EvaluateConfig, network: Network, reference: Reference) -> dict[str, Any]:
    """Return everything besides the samples that decides the scores, by content: the same images
    may lie elsewhere."""
    return {
        "evaluator": EVALUATOR,
        "reference_fingerprint": reference.fingerprint(),
        "resolution": config.reference.resolution,
        "reference_images": len(reference.kept),
        "inception_sha256": network.sha256,
        "preprocessing": network.config.preprocessing,
        "is_splits": config.is_splits,
    }


SAMPLED = ("samples_fingerprint", "sample_json_sha256")
"""Entries of the samples, unknown until they are drawn."""
