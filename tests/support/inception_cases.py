"""Weights for Inception tests: the golden recipe, for any shapes in torch layout."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lit_jax.checkpoints.pairing import slots
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.inception.torch_keys import LAYOUTS
from support.golden_cases import load_meta

# Width 1/16: two filters in the first layer, 128 features.
TINY = InceptionConfig(width_divisor=16, num_logits=10)


def recipe_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """The state dict that inception.json describes: drawn in the order of the sorted keys."""
    random = np.random.RandomState(seed)
    weights = {}
    for key in sorted(shapes):
        shape = tuple(shapes[key])
        values = random.standard_normal(shape)
        if key.endswith(".conv.weight"):
            values *= np.sqrt(2.0 / np.prod(shape[1:]))
        elif key.endswith(".bn.weight"):
            values = 1.0 + 0.1 * values
        elif key.endswith("running_var"):
            values = 1.0 + 0.5 * np.tanh(values)
        elif key == "fc.weight":
            values *= 0.05
        else:
            values *= 0.1
        weights[key] = values.astype(np.float32)
    return weights


@functools.cache
def golden_weights(folder: Path) -> dict[str, np.ndarray]:
    """The weights behind the golden features of `folder`, checked by their sum."""
    meta = load_meta(folder, "inception")
    weights = recipe_weights(meta["keys"], meta["seed"])
    total = sum(np.abs(values, dtype=np.float64).sum() for values in weights.values())
    np.testing.assert_allclose(total, meta["checksums"]["TOTAL_abs"], rtol=1e-9)
    return weights


def tiny_weights(config: InceptionConfig = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    """A small state dict with the keys of the real one."""
    expected = slots(LAYOUTS[0], config)
    return recipe_weights({key: slot.source_shape for key, slot in expected.items()}, seed)
