"""The training state: what a checkpoint must hold besides the data position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Number of finished steps (int32 scalar), parameters, their EMA, optimiser state."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return step 0: the EMA starts as an exact copy of the parameters. Pure, so it can be jitted
    with out_shardings and no device ever holds the whole state."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )
