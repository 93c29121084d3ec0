"""lit_jax: linear diffusion transformers in JAX.

Take a trained softmax diffusion transformer, keep everything but its self-attention, and train a
linear-cost student from it. The public names are loaded on first use, so that the command line can
check its flags before it pays for importing jax.
"""

from __future__ import annotations

import importlib
from typing import Any

from lit_jax.version import VERSION as __version__

_PUBLIC = {
    "TextCondition": "lit_jax.models.conditions",
    "create_model": "lit_jax.models.functional",
    "load_model": "lit_jax.checkpoints.model_folder",
}
__all__ = ["TextCondition", "__version__", "create_model", "load_model"]  # noqa: F822 (resolved by __getattr__)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lit_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
