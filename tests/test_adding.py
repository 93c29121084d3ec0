"""Adding a part, as docs/architecture.md describes it: one file or folder, and one row.

`support.additions` holds the parts. The fixtures add the row, and nothing else; every test then
runs a piece of the package that the page promises to work.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lit_jax import sharding
from lit_jax.checkpoints.convert import export_params, import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of, layouts_for
from lit_jax.commands.cost import job
from lit_jax.config import DistillConfig, EmaConfig, MeshConfig, OptimizerConfig
from lit_jax.config.cost import CostConfig
from lit_jax.config.protocol import Protocol
from lit_jax.inheritance import inherit
from lit_jax.models import attention, functional, registry
from lit_jax.models.attention import MixerSpec
from lit_jax.models.cost import forward_components, forward_macs, parameter_components
from lit_jax.objectives import hybrid_objective
from lit_jax.sampling import sampler
from lit_jax.training.batch import condition_of
from lit_jax.training.optimizer import frozen_mask, make_optimizer
from lit_jax.training.state import create_state
from lit_jax.training.step import Task, train_step
from support.additions import parallel
from support.products import traced_products

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {"hidden_size": 16, "depth": 2, "num_heads": 2, "input_size": 8}
TINY |= {"num_classes": 10, "mlp_ratio": 2.0}
ADDED = {"mixer": ("LiT", {"mixer": "mean"}), "family": ("Parallel-T/2", {})}


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the row of the mixer and the line of the family."""
    monkeypatch.setitem(
        attention.MIXERS, "mean", MixerSpec("support.additions.mean_mixer:MeanMixer")
    )
    registry.FAMILIES.append(parallel.FAMILY)
    yield
    registry.FAMILIES.remove(parallel.FAMILY)


@pytest.fixture(params=ADDED)
def config(request: pytest.FixtureRequest) -> Any:
    name, fields = ADDED[request.param]
    return registry.model_config(name, **TINY | fields)


@pytest.fixture
def mesh() -> Any:
    return sharding.make_mesh(MeshConfig(1, 1), jax.devices()[:1])


def random_params(config: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.1,
        functional.abstract_params(config),
    )


def test_every_parameter_has_a_placement(config: Any) -> None:
    devices = sharding.make_mesh(MeshConfig(4, 2))
    placed = traverse_util.flatten_dict(functional.shardings(config, devices), sep="/")
    kernel = "blocks/attn/gate/kernel" if config.mixer == "mean" else "blocks/attn/q/kernel"
    assert placed[kernel].spec == jax.sharding.PartitionSpec(None, "fsdp", None)


def test_closed_form_is_the_traced_cost(config: Any) -> None:
    assert traced_products(config) == forward_macs(config)
    assert forward_components(config)["projections"] > 0
    counted = sum(parameter_components(config).values())
    assert counted == functional.count_params(functional.abstract_params(config))


def test_cost_command(config: Any, tmp_path: Path) -> None:
    text = " ".join(f"{k}={v}" for k, v in TINY.items() if k != "input_size")
    name = "LiT mixer=mean" if config.mixer == "mean" else "Parallel"
    settings = {"resolutions": (64,), "compile_up_to": 64, "out": str(tmp_path / "out")}
    out = job.cost(CostConfig(models=(f"{name} {text}",), **settings))
    assert name in (out / "cost.json").read_text()


def test_training_step(config: Any) -> None:
    process = sampler.make_process(config, "")
    params = jax.tree.map(jnp.asarray, random_params(config))
    frozen = frozen_mask(params, functional.buffer_paths(config))
    task = Task(
        student=functional.apply_fn(config),
        teacher=None,
        process=process,
        objective=hybrid_objective(process, DistillConfig()),
        optimizer=make_optimizer(OptimizerConfig(warmup_steps=0), 10, frozen, config),
        ema=EmaConfig(),
        accumulation=1,
        seed=0,
        condition_of=condition_of(config),
    )
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.standard_normal((2, 8, 8, 4)).astype(np.float32),
        "label": np.array([1, 2], np.int32),
    }
    step = jax.jit(functools.partial(train_step, task))
    state, metrics = step(create_state(params, task.optimizer), {}, batch)
    assert int(state.step) == 1 and bool(metrics["finite"])
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert not np.array_equal(old, new)


def test_samples(config: Any, mesh: Any) -> None:
    protocol = Protocol(sampler="ddim", steps="3", cfg_scale=2.0)
    draw = sampler.make_sampler(config, protocol, mesh)
    labels = np.array([1, 2], np.int32)
    batches = sampler.LabelBatches(
        draw, random_params(config), None, 0, labels, config.null_label, 2, mesh
    )
    ((_, images, _),) = batches.batches(0, 2)
    assert images.shape == (2, 8, 8, 4) and np.all(np.isfinite(images))
    assert not np.array_equal(images[0], images[1])


def test_inheritance_from_a_softmax_teacher() -> None:
    """A student with a new mixer keeps everything but the self-attention."""
    teacher = registry.model_config("DiT", **TINY)
    student = registry.model_config("LiT", **TINY, mixer="mean")
    source, fresh = random_params(teacher, 1), random_params(student, 2)
    kept = inherit(student, fresh, teacher, source, "all_but_attention")[0]
    for path, expected in (("blocks/mlp/fc1/kernel", source), ("blocks/attn/gate/kernel", fresh)):
        assert np.array_equal(*(functional.parameter(tree, path) for tree in (kept, expected)))


def test_conversion_both_ways() -> None:
    config = registry.model_config("Parallel-T/2", **TINY)
    params = random_params(config)
    state = export_params(params, config, layouts_for(config)[0])
    assert state["layers.1.qkv.weight"].shape == (48, 16)
    layout = layout_of(list(state))
    assert layout.name == "parallel"
    found = detect_config(state, overrides={"num_heads": 2})
    assert found == config
    again, work = import_params(state, found, layout)
    assert work.used == len(state) - 1  # all but the position table
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.array_equal(a, b)


def test_names_are_listed() -> None:
    unknown = registry.model_config("LiT", **TINY, mixer="maen")
    with pytest.raises(ValueError, match="mean"):
        functional.abstract_params(unknown)
    assert "Parallel" in registry.members() and "Parallel-T/2" in registry.sizes()


@pytest.mark.parametrize("module", ["lit_jax.models.registry", "lit_jax.models.attention"])
def test_tables_load_without_jax(module: str) -> None:
    """A command line is checked against them before jax is imported."""
    code = f"import sys, {module}; print([m for m in ('jax', 'flax') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


MIXER_NAMES = re.compile(r"""["'](window|focused|sana|gated)["']""")


def test_a_mixer_is_named_in_its_own_file_and_row_alone() -> None:
    """Outside models/ only "window" is named, where a softmax model is given windows, where a
    checkpoint does not record them, and where their tiles are a question of memory."""
    found = {
        path.relative_to(ROOT / "lit_jax").as_posix()
        for path in (ROOT / "lit_jax").rglob("*.py")
        if MIXER_NAMES.search(path.read_text("utf-8"))
    }
    outside = {path for path in found if not path.startswith("models/")}
    assert outside <= {
        "sampling/windows.py",
        "checkpoints/detect.py",
        "commands/generate/memory.py",
    }
