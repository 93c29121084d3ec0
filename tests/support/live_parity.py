"""Comparing against PyTorch implementations with weights and inputs that differ in every run.

The seed is drawn anew each time and shown when a test fails; LIT_JAX_TEST_SEED=N repeats a run.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np


def live_seed() -> int:
    """A seed of 32 bits, printed so that pytest shows it beside a failure."""
    given = os.environ.get("LIT_JAX_TEST_SEED")
    seed = int(given) if given else secrets.randbits(32)
    print(f"LIT_JAX_TEST_SEED={seed}")
    return seed


def randomise_(module: Any, seed: int) -> None:
    """Redraws every parameter of a torch module in place, none of them negligible.

    Matrices and convolutions N(0, 1 / fan_in), norm weights 1 + 0.2 N, other vectors 0.1 N,
    so that no zero-initialised layer hides an error behind it.
    """
    import torch

    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            values = rng.standard_normal(tuple(parameter.shape))
            if parameter.ndim > 1:
                values /= np.sqrt(np.prod(parameter.shape[1:]))
            elif name.endswith("weight"):
                values = 1 + 0.2 * values
            else:
                values *= 0.1
            parameter.copy_(torch.from_numpy(values))


def state_of(module: Any) -> dict[str, np.ndarray]:
    """The state dict of a torch module as numpy arrays."""
    return {key: value.detach().cpu().numpy() for key, value in module.state_dict().items()}
