"""Checkpoints of a run: everything a killed job needs to go on as if nothing had happened.

One orbax checkpoint per step under `WORKDIR/checkpoints/<step>/` with the items `state` (step,
params, ema, opt_state), `data` (position of the grain iterator, per process) and `meta` (seed).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grain
import orbax.checkpoint as ocp

from lit_jax.config import TrainConfig
from lit_jax.training.state import TrainState

FOLDER = "checkpoints"


def open_manager(workdir: Path, keep: int, every: int) -> ocp.CheckpointManager:
    """The asynchronous checkpoint manager of a run. Only finished checkpoints are ever visible;
    the remains of one during which the run was killed are removed."""
    return ocp.CheckpointManager(
        (workdir / FOLDER).absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            save_interval_steps=every,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        ),
    )


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    data: Any,
    config: TrainConfig,
    step: int,
    force: bool = False,
) -> bool:
    """Saves when `step` is due (or `force`); returns whether it did. The copy to disk goes on in
    the background."""
    if step in manager.all_steps():
        return False
    return manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)),
            data=grain.checkpoint.CheckpointSave(data),
            meta=ocp.args.JsonSave({"seed": config.seed}),
        ),
        force=force,
    )


def restore(
    manager: ocp.CheckpointManager, abstract: TrainState, data: Any, config: TrainConfig
) -> TrainState:
    """The latest checkpoint, straight into the shardings of `abstract`; moves `data` to its
    position.

    Raises ValueError when the run was started with another seed: noise and data order would change
    in the middle of the run.
    """
    step = manager.latest_step()
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    if meta["seed"] != config.seed:
        raise ValueError(
            f"checkpoint {step} was trained with seed {meta['seed']}, the config says"
            f" {config.seed}; set seed={meta['seed']} or choose another workdir"
        )
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_as_dict(abstract)),
            data=grain.checkpoint.CheckpointRestore(data),
        ),
    )
    return TrainState(**restored.state)


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
