"""Optimisers, learning-rate schedules, frozen parameters and the moving average of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lit_jax.config import EmaConfig, OptimizerConfig, unknown_name
from lit_jax.models.registry import NetworkConfig
from lit_jax.sharding import path_string
from lit_jax.training.came import came, torch_tensors

Schedule = Callable[[int | jax.Array], jax.Array | float]


def _constant(config: OptimizerConfig, total_steps: int) -> Schedule:
    return optax.schedules.constant_schedule(config.learning_rate)


def _cosine(config: OptimizerConfig, total_steps: int) -> Schedule:
    return optax.schedules.cosine_decay_schedule(
        config.learning_rate, max(1, total_steps - config.warmup_steps)
    )


SCHEDULES: dict[str, Callable[[OptimizerConfig, int], Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
}


def learning_rate(config: OptimizerConfig, total_steps: int) -> Schedule:
    """Return learning rate of a step: linear warm-up from 0, then the schedule named in the config.

    Raises ValueError for an unknown schedule or a warm-up longer than the run.
    """
    if config.schedule not in SCHEDULES:
        raise unknown_name("optimizer.schedule", config.schedule, SCHEDULES)
    if config.warmup_steps >= total_steps > 0 and config.warmup_steps > 0:
        raise ValueError(
            f"optimizer.warmup_steps {config.warmup_steps} is not below total_steps {total_steps}"
        )
    after = SCHEDULES[config.schedule](config, total_steps)
    if not config.warmup_steps:
        return after
    warmup = optax.schedules.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.schedules.join_schedules([warmup, after], [config.warmup_steps])


def _adamw(
    config: OptimizerConfig, rate: Schedule, network: NetworkConfig
) -> optax.GradientTransformation:
    return optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )


def _came(
    config: OptimizerConfig, rate: Schedule, network: NetworkConfig
) -> optax.GradientTransformation:
    if config.eps != OptimizerConfig.eps:
        raise ValueError(
            f"optimizer.eps is {config.eps}, but CAME has two of its own, of another meaning; leave"
            f" it at {OptimizerConfig.eps}"
        )
    return came(
        rate,
        torch_tensors(network),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "came": _came,
}
"""Name -> optimiser with decoupled weight decay, from (settings, learning rate, network)."""


def frozen_mask(params: Any, patterns: tuple[str, ...]) -> Any:
    """Return true for each leaf whose path matches one of `patterns`.

    Raises ValueError for a pattern that matches nothing: it would freeze nothing silently.
    """
    paths = [path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"inherit.freeze pattern {pattern!r} matches no parameter")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(p, path_string(path)) for p in patterns), params
    )


def make_optimizer(
    config: OptimizerConfig, total_steps: int, frozen: Any, network: NetworkConfig
) -> optax.GradientTransformation:
    """Return the optimiser named in the config, preceded by global-norm clipping when `clip_norm` >
    0.

    `frozen` is a tree of booleans; frozen leaves get no update, no moments, and do not count
    towards the norm that is clipped. Raises ValueError for an unknown optimiser or schedule.
    """
    if config.name not in OPTIMIZERS:
        raise unknown_name("optimizer.name", config.name, OPTIMIZERS)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    parts.append(OPTIMIZERS[config.name](config, learning_rate(config, total_steps), network))
    trained = optax.chain(*parts)
    if not any(jax.tree.leaves(frozen)):
        return trained
    labels = jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def ema_decay(config: EmaConfig, step: jax.Array) -> jax.Array:
    """Return decay applied after optimiser step `step` (0-based): constant, or with warm-up
    min(decay, (1 + step) / (10 + step))."""
    decay = jnp.float32(config.decay)
    if not config.warmup:
        return decay
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update_ema(ema: Any, params: Any, decay: jax.Array) -> Any:
    """Return ema <- decay * ema + (1 - decay) * params, leaf by leaf in float32."""
    return jax.tree.map(lambda e, p: e * decay + p * (1 - decay), ema, params)
