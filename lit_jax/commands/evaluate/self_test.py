"""`python -m lit_jax evaluate --self_test`: checks with known answers, expected against found."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from lit_jax.checkpoints.identity import params_sha256
from lit_jax.config.evaluate import ReferenceConfig
from lit_jax.evaluation.measuring import choose
from lit_jax.evaluation.network import FeatureExtractor, Network, read_network
from lit_jax.evaluation.reference import Reference, open_reference
from lit_jax.evaluation.self_test import (
    HEAD,
    IMAGES,
    Check,
    gaussian_checks,
    image_checks,
    score_checks,
    synthetic_images,
)
from lit_jax.models import functional
from lit_jax.models.inception.config import WIDTH_UNIT, InceptionConfig
from lit_jax.runs.hosts import Log


def self_test(
    inception: str, reference: ReferenceConfig | None, batch_size: int = 64, log: Log = print
) -> int:
    """Run the checks and return how many there were.

    Without `reference` on pictures that are made up, without `inception` on a small network of
    random weights: both are enough to check an installation. Raises ValueError when a check fails,
    and what opening the reference raises.
    """
    network = read_network(inception) if inception else random_network()
    opened = open_reference(reference, network) if reference is not None else None
    log(f"self test of {opened.name if opened else 'made-up images'} with {network.name}")
    log(HEAD)
    done, failed = 0, []
    for check in checks(network, opened, batch_size):
        log(check.line())
        done += 1
        if not check.passed:
            failed.append(check.name)
    if failed:
        raise ValueError(f"{len(failed)} of {done} checks failed: {'; '.join(failed)}")
    log(f"all {done} checks passed")
    return done


def checks(network: Network, opened: Reference | None, batch_size: int) -> Iterator[Check]:
    """Yield all checks that can be made of this reference."""
    yield from score_checks()
    if opened is not None and opened.given is not None:
        yield from gaussian_checks("statistics: FID", opened.given.pool)
        if opened.given.spatial is not None:
            yield from gaussian_checks("statistics: sFID", opened.given.spatial)
    if opened is not None and opened.images is None:
        return
    if opened is None or opened.images is None:
        images_NxHxWx3 = synthetic_images()
    else:
        chosen = choose(opened.images.count, IMAGES)
        images = [opened.images.read(int(i), int(i) + 1)[0] for i in chosen]
        images_NxHxWx3 = np.stack(images)
    extractor = FeatureExtractor(network, min(batch_size, len(images_NxHxWx3)))
    yield from image_checks(images_NxHxWx3, extractor)


def random_network() -> Network:
    """Return the architecture of the FID Inception, one sixteenth as wide, with random weights."""
    config = InceptionConfig(width_divisor=WIDTH_UNIT, num_logits=10)
    params = jax.device_get(functional.init_params(config, jax.random.key(0)))
    return Network("a small random Inception", config, params, params_sha256(params))
