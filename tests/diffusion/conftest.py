"""Golden DiT that the golden diffusion cases were computed with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from lit_jax.checkpoints.convert import import_params
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import apply_fn
from lit_jax.models.registry import model_config
from support.golden_cases import load_meta, load_state_dict


@dataclass(frozen=True)
class GoldenDiT:
    """The model `dit_p2` of one golden folder: parameters and compiled function."""

    params: dict[str, Any]
    apply: Callable[..., jax.Array]
    config: DiTConfig


@pytest.fixture(scope="session")
def golden_dit() -> Callable[[Path], GoldenDiT]:
    """Return a loader of `dit_p2` of a golden folder; all folders share the compiled function."""

    @functools.cache
    def compiled(config: DiTConfig) -> Callable[..., jax.Array]:
        return jax.jit(apply_fn(config))

    @functools.cache
    def load(folder: Path) -> GoldenDiT:
        config = model_config("DiT", **load_meta(folder, "dit_p2")["config"])
        params, _ = import_params(load_state_dict(folder, "dit_p2"), config)
        return GoldenDiT(params, compiled(config), config)

    return load
