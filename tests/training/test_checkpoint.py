"""Checkpoints: everything comes back, on another mesh too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from lit_jax import sharding
from lit_jax.config import DataConfig, InheritConfig, MeshConfig, OptimizerConfig, TrainConfig
from lit_jax.data.stream import BatchStream
from lit_jax.models import functional, registry
from lit_jax.training import checkpoint
from lit_jax.training.state import TrainState, create_state
from support import tiny_runs

CONFIG = TrainConfig(seed=3)
MODEL = registry.model_config("LiT", **tiny_runs.SIZE)


def data(**identity: str) -> BatchStream:
    """Batches of a single number; `identity` is that of the data."""
    numbers = grain.MapDataset.range(100).shuffle(seed=0).repeat()
    return BatchStream(numbers, {}, identity)


def saved_state(mesh: jax.sharding.Mesh) -> TrainState:
    """A state in which every part has numbers of its own."""
    params = tiny_runs.random_params(MODEL)
    state = create_state(jax.tree.map(jnp.asarray, params), optax.adamw(1e-3))
    leaves, structure = jax.tree.flatten(state)
    leaves = [leaf + i if leaf.ndim else leaf for i, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(structure, leaves)
    return jax.device_put(state, functional.shardings(MODEL, mesh, state))


def abstract(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        functional.shardings(MODEL, mesh, state),
    )


def save_three(folder: Path, state: TrainState, position: Any) -> None:
    with checkpoint.open_manager(folder, keep=2, every=1) as manager:
        next(position)  # so that the position is not the step
        for step in (1, 2, 3):
            next(position)
            assert checkpoint.save(manager, state, position, CONFIG, step)
        assert not checkpoint.save(manager, state, position, CONFIG, 3, force=True)
        manager.wait_until_finished()


def test_eight_devices_to_one_and_to_another_mesh(tmp_path: Path) -> None:
    eight = sharding.make_mesh(MeshConfig(data=4, fsdp=2))
    state, position = saved_state(eight), data()
    save_three(tmp_path, state, position)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    expected = [next(position) for _ in range(5)]

    meshes = [
        sharding.make_mesh(MeshConfig(), jax.devices()[:1]),
        sharding.make_mesh(MeshConfig(data=2, fsdp=4)),
    ]
    for mesh in meshes:
        wanted, resumed = abstract(state, mesh), data()
        with checkpoint.open_manager(tmp_path, keep=2, every=1) as manager:
            restored = checkpoint.restore(manager, wanted, resumed, CONFIG)
        assert jax.tree.structure(restored.params) == jax.tree.structure(state.params)
        for new, old, want in zip(*map(jax.tree.leaves, (restored, state, wanted)), strict=True):
            np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
            assert new.sharding.is_equivalent_to(want.sharding, new.ndim)
            assert len(new.sharding.device_set) == mesh.size
        assert resumed.position == 4
        assert [next(resumed) for _ in range(5)] == expected


def test_older_checkpoint_goes_on(tmp_path: Path) -> None:
    """The position used to be the state of a grain iterator, one file per process."""
    mesh = sharding.make_mesh(MeshConfig())
    state, position = saved_state(mesh), data()
    older = iter(grain.MapDataset.range(100).shuffle(seed=0).repeat().to_iter_dataset())
    for _ in range(7):
        next(older)
    meta = checkpoint.circumstances(CONFIG, position) | {"number of processes": 2}
    with checkpoint.open_manager(tmp_path, keep=2, every=1) as manager:
        manager.save(
            5,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(vars(state)),
                data=grain.checkpoint.CheckpointSave(older),
                meta=ocp.args.JsonSave(meta),
            ),
        )
    with checkpoint.open_manager(tmp_path, keep=2, every=1) as manager:
        checkpoint.restore(manager, abstract(state, mesh), position, CONFIG)
        assert position.position == 7
        assert [next(position) for _ in range(5)] == [next(older) for _ in range(5)]
        assert checkpoint.save(manager, state, position, CONFIG, 6)
    with checkpoint.open_manager(tmp_path, keep=2, every=1) as manager:
        checkpoint.restore(manager, abstract(state, mesh), position, CONFIG)
        assert position.position == 12


CHANGED = {
    "seed 3, now 4": TrainConfig(seed=4),
    "batch_size 256, now 128": TrainConfig(seed=3, batch_size=128),
    "data.flip False, now True": TrainConfig(seed=3, data=DataConfig(flip=True)),
    "clip_norm > 0 False, now True": TrainConfig(seed=3, optimizer=OptimizerConfig(clip_norm=1)),
    "freeze [], now ['mlp']": TrainConfig(seed=3, inherit=InheritConfig(freeze=("mlp",))),
}


def test_other_circumstances_are_refused(tmp_path: Path) -> None:
    mesh = sharding.make_mesh(MeshConfig())
    state = saved_state(mesh)
    save_three(tmp_path, state, data())
    with checkpoint.open_manager(tmp_path, keep=2, every=1) as manager:
        for message, config in CHANGED.items():
            with pytest.raises(ValueError, match="checkpoint 3 cannot be continued") as error:
                checkpoint.restore(manager, abstract(state, mesh), data(), config)
            assert message in str(error.value)
        other = data(**{"data schema sha256": "b"})
        checkpoint.save(manager, state, data(**{"data schema sha256": "a"}), CONFIG, 4)
        with pytest.raises(ValueError, match="data schema sha256 'a', now 'b'"):
            checkpoint.restore(manager, abstract(state, mesh), other, CONFIG)
        assert other.position == 0
