"""Checkpoints of a run: everything a killed job needs to go on as if nothing had happened.

One orbax checkpoint per step under `WORKDIR/checkpoints/<step>/` with the items `state` (step,
params, ema, opt_state), `data` (position in the data: the number of global batches taken, the same
for any number of processes) and `meta` (what the position and the state depend on, see
`circumstances`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import orbax.checkpoint as ocp

from lit_jax.config import TrainConfig
from lit_jax.training.state import TrainState

FOLDER = "checkpoints"


class Data(Protocol):
    """Position of the training data in a checkpoint; `data.stream.BatchStream` has it."""

    identity: Mapping[str, str]

    @property
    def position(self) -> int: ...

    def seek(self, position: int) -> None: ...


def open_manager(workdir: Path, keep: int, every: int) -> ocp.CheckpointManager:
    """Return the asynchronous checkpoint manager of a run. Only finished checkpoints are ever
    visible; the remains of one during which the run was killed are removed."""
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
    data: Data,
    config: TrainConfig,
    step: int,
    force: bool = False,
) -> bool:
    """Save when `step` is due (or `force`); return whether it did. The copy to disk goes on in the
    background."""
    if step in manager.all_steps():
        return False
    return manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)),
            data=ocp.args.JsonSave({"global_batches": data.position}),
            meta=ocp.args.JsonSave(circumstances(config, data)),
        ),
        force=force,
    )


def restore(
    manager: ocp.CheckpointManager, abstract: TrainState, data: Data, config: TrainConfig
) -> TrainState:
    """Return the latest checkpoint, straight into the shardings of `abstract`; moves `data` to its
    position.

    Raises ValueError when the run was started under other `circumstances`, with both values.
    """
    step = manager.latest_step()
    stored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    wanted = circumstances(config, data)
    # What an older checkpoint does not know of cannot have been used when it was written.
    changed = [
        f"{key} {stored[key]!r}, now {wanted[key]!r}"
        for key in wanted
        if key in stored and stored[key] != wanted[key]
    ]
    if changed:
        raise ValueError(
            f"checkpoint {step} cannot be continued: it was trained with {'; '.join(changed)}."
            " Change it back, or choose another workdir"
        )
    position = _position(manager, step)
    restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_as_dict(abstract)))
    )
    data.seek(position)
    return TrainState(**restored.state)


def _position(manager: ocp.CheckpointManager, step: int) -> int:
    """Return global batches taken when the checkpoint was written.

    Checkpoints used to hold the state of one grain iterator per process. Each counted the batches
    of its process, which are as many as the global ones.
    """
    for path in (Path(manager.directory) / str(step) / "data").glob("process_*-of-*.json"):
        return int(json.loads(path.read_text())["next_index"])
    item = manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore())).data
    return int(item["global_batches"])


def circumstances(config: TrainConfig, data: Data) -> dict[str, Any]:
    """Return what must not change in the middle of a run.

    Noise and data order depend on the seed; the position in the data counts batches; the optimiser,
    clipping and freezing are part of the structure of the state. The number of hosts, devices and
    worker processes may change.
    """
    return {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "data.name": config.data.name,
        "data.split": config.data.split,
        "data.flip": config.data.flip,
        "data.caption_weights": list(config.data.caption_weights),
        "optimizer.name": config.optimizer.name,
        "optimizer.clip_norm > 0": config.optimizer.clip_norm > 0,
        "inherit.freeze": list(config.inherit.freeze),
        **data.identity,
    }


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
