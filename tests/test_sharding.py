"""Placement rules, and the promise behind them: eight devices compute what one computes."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from lit_jax import sharding
from lit_jax.config import DistillConfig, EmaConfig, MeshConfig
from lit_jax.diffusion.gaussian import create_process
from lit_jax.models import functional, registry
from lit_jax.models.attention import MIXERS
from lit_jax.models.registry import members
from lit_jax.models.t5.config import T5Config
from lit_jax.objectives import hybrid_objective
from lit_jax.training.batch import labels
from lit_jax.training.state import create_state
from lit_jax.training.step import Task, train_step
from support import tiny_runs

STUDENT = registry.model_config("LiT", kernel_size=3, **tiny_runs.SIZE)
TEACHER = registry.model_config("DiT", **tiny_runs.SIZE)


def paths(tree: Any) -> dict[str, Any]:
    return {
        sharding.path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def mesh(data: int, fsdp: int) -> Mesh:
    return sharding.make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])


def on_mesh(config: Any, params: Any, mesh: Mesh) -> Any:
    return jax.device_put(params, functional.shardings(config, mesh))


def three_steps(on: Mesh) -> tuple[Any, list[dict[str, float]]]:
    """State and metrics of a distilled run on `on`, started and fed from host arrays."""
    process = create_process()
    optimizer = optax.adamw(5e-4)
    task = Task(
        student=functional.apply_fn(STUDENT),
        teacher=functional.apply_fn(TEACHER),
        process=process,
        objective=hybrid_objective(process, DistillConfig(teacher="tiny")),
        optimizer=optimizer,
        ema=EmaConfig(decay=0.5),
        accumulation=1,
        seed=0,
        condition_of=labels(10, 0.1),
    )
    params = on_mesh(STUDENT, tiny_runs.random_params(STUDENT), on)
    teacher = on_mesh(TEACHER, tiny_runs.random_params(TEACHER, seed=1), on)
    shapes = jax.eval_shape(lambda p: create_state(p, optimizer), params)
    places = functional.shardings(STUDENT, on, shapes)
    state = jax.jit(lambda p: create_state(p, optimizer), out_shardings=places)(params)
    step = jax.jit(
        functools.partial(train_step, task), out_shardings=(places, sharding.replicated(on))
    )
    generator, metrics = np.random.default_rng(2), []
    for _ in range(3):
        batch = {
            "image": generator.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32),
            "label": generator.integers(0, 10, 8).astype(np.int32),
        }
        state, values = step(state, teacher, sharding.place_batch(batch, on))
        metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics


@pytest.fixture(scope="module")
def on_one_device() -> tuple[Any, list[dict[str, float]]]:
    return three_steps(mesh(1, 1))


@pytest.mark.parametrize("data, fsdp", [(4, 2), (2, 4)])
def test_eight_devices_equal_one(
    on_one_device: tuple[Any, list[dict[str, float]]], data: int, fsdp: int
) -> None:
    expected, expected_metrics = on_one_device
    state, metrics = three_steps(mesh(data, fsdp))
    for found, wanted in zip(metrics, expected_metrics, strict=True):
        assert found.keys() == wanted.keys() and "noise_distillation" in found
        for name in found:
            # A sum that rounds to the other side of a ReLU's kink shows in the gradient.
            rtol = 1e-4 if name == "gradient_norm" else 1e-5
            np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, err_msg=name)
    found_arrays, wanted_arrays = paths(state), paths(expected)
    for path, array in found_arrays.items():
        if path.startswith(("params", "ema")):
            wanted = np.asarray(wanted_arrays[path])
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5, err_msg=path)
    start = tiny_runs.random_params(STUDENT)
    moved = np.asarray(state.params["blocks"]["attn"]["q"]["kernel"])
    assert np.abs(moved - start["blocks"]["attn"]["q"]["kernel"]).max() > 5e-4

    # Really split: a device holds 1/fsdp of each kernel, of its moments and of its EMA.
    kernels = [path for path in found_arrays if path.endswith("blocks/mlp/fc1/kernel")]
    assert len(kernels) == 4
    for path in kernels:
        array = found_arrays[path]
        assert array.sharding.spec == PartitionSpec(None, "fsdp", None)
        shapes = {shard.data.shape for shard in array.addressable_shards}
        assert shapes == {(2, 16 // fsdp, 64)}
        assert len(array.sharding.device_set) == 8


# Every family at a real size, with every option that adds parameters, and the share that is split.
COMPRESSION = {"sampling": "conv", "scale_factor": 2, "kv_compress_layer": [14, 27]}
FAMILIES: dict[str, tuple[str, dict[str, Any], float]] = {
    **{f"DiT {mixer}": ("DiT-XL/2", {"mixer": mixer}, 0.98) for mixer in MIXERS},
    "DiT without labels": ("DiT-S/2", {"num_classes": 0}, 0.98),
    "LiT": ("LiT-XL/2", {}, 0.98),
    "CLEAR": ("CLEAR-XL/2", {"down_factor": 4}, 0.98),
    "DiG": ("DiG-XL/2", {"skip": True}, 0.98),
    "PixArt": (
        "PixArt-Sigma-XL/2",
        {"qk_norm": True, "micro_condition": True, "kv_compress_config": COMPRESSION},
        0.98,
    ),
    "PixArt LiT": ("LiT-0.6B", {"micro_condition": True}, 0.98),
    "T5 XXL": ("T5-v1.1-XXL", {}, 0.98),
    "T5 small": ("T5-v1.1-small", {}, 0.98),
    "AutoencoderKL": ("AutoencoderKL", {}, 0),
    "Inception": ("Inception", {}, 0),
}


def test_no_family_is_forgotten() -> None:
    named = {registry.model_config(name, **fields).family for name, fields, _ in FAMILIES.values()}
    assert named == set(members())


@pytest.mark.parametrize("case", FAMILIES)
def test_every_parameter_has_one_rule(case: str) -> None:
    name, fields, share = FAMILIES[case]
    config = registry.model_config(name, **fields)
    shapes = functional.abstract_params(config)
    places = functional.shardings(config, mesh(2, 4))
    specs = {path: leaf.spec for path, leaf in paths(places).items()}
    assert specs.keys() == paths(shapes).keys()
    assert all(spec == PartitionSpec() for path, spec in specs.items() if path.endswith("bias"))
    split = sum(leaf.size for path, leaf in paths(shapes).items() if "fsdp" in specs[path])
    total = functional.count_params(shapes)
    assert share * total <= split <= (total if share else 0)
    assert all(spec[:1] != PartitionSpec("fsdp") for p, spec in specs.items() if "blocks" in p)
    # The moments of an optimiser lie where their parameters lie.
    moments = {"opt_state": {"0": {"mu": shapes}}}
    prefixed = paths(functional.shardings(config, mesh(2, 4), moments))
    assert {path: leaf.spec for path, leaf in prefixed.items()} == {
        f"opt_state/0/mu/{path}": spec for path, spec in specs.items()
    }


# --- a text encoder on eight devices ---

ENCODER = T5Config(vocab_size=60, d_model=24, d_kv=8, d_ff=40, num_layers=5, num_heads=2)


def encoder_on(on: Mesh) -> tuple[Any, Any, Any]:
    """Compiled encoder, its parameters and a batch of 8, placed on `on`."""
    params = on_mesh(ENCODER, tiny_runs.random_params(ENCODER), on)
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 17, (8, 1))
    batch = sharding.place_batch(
        {
            "ids": generator.integers(0, 60, (8, 16)).astype(np.int32),
            "mask": (np.arange(16) < lengths).astype(np.int32),
        },
        on,
    )
    encode = jax.jit(functional.apply_fn(ENCODER), out_shardings=sharding.batch_sharding(on))
    return encode.lower(params, batch["ids"], batch["mask"]).compile(), params, batch


def test_text_encoder_on_eight_devices_equals_one() -> None:
    outputs = []
    for data, fsdp in ((1, 1), (2, 4)):
        encode, params, batch = encoder_on(mesh(data, fsdp))
        outputs.append(np.asarray(encode(params, batch["ids"], batch["mask"])))
        for name, split in (("wi_0", (5, 24 // fsdp, 40)), ("wo", (5, 40 // fsdp, 24))):
            kernel = params["blocks"]["mlp"][name]["kernel"]
            assert {shard.data.shape for shard in kernel.addressable_shards} == {split}
    expected, found = outputs
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_text_encoder_gathers_one_layer_at_a_time() -> None:
    """No device ever holds a kernel of all five layers."""
    program = encoder_on(mesh(2, 4))[0].as_text()
    shapes = set(re.findall(r"f32\[([\d,]*)\]", program))
    assert "24,40" in shapes and "5,6,40" in shapes, "not the program this test is about"
    assert "5,24,40" not in shapes and "5,40,24" not in shapes


RULES = ((r"blocks/mlp/fc1/kernel", (None, "fsdp", None)),)


def test_rules_that_are_missing_or_conflict() -> None:
    with pytest.raises(ValueError, match="no sharding rule matches 'blocks/new/weight'"):
        sharding.spec_of("blocks/new/weight", (2, 4), mesh(4, 2), RULES)
    more = (*RULES, (r"fc1/\w+", ("fsdp",)))
    with pytest.raises(ValueError, match="conflicting rules"):
        sharding.spec_of("blocks/mlp/fc1/kernel", (2, 4, 4), mesh(4, 2), more)


def test_axis_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="axis of 6 of .*fc1.* not divisible by mesh.fsdp=4"):
        sharding.spec_of("blocks/mlp/fc1/kernel", (2, 6, 4), mesh(2, 4), RULES)
    assert sharding.spec_of("opt_state/0/count", (), mesh(2, 4), RULES) == PartitionSpec()


def test_mesh_sizes() -> None:
    assert dict(sharding.make_mesh(MeshConfig(-1, 2)).shape) == {"data": 4, "fsdp": 2}
    assert dict(sharding.make_mesh(MeshConfig(2, -1)).shape) == {"data": 2, "fsdp": 4}
    for config, named in (
        (MeshConfig(3, 2), "needs 6 devices, but there are 8"),
        (MeshConfig(-1, 3), "does not divide 8 devices"),
    ):
        with pytest.raises(ValueError, match=named):
            sharding.make_mesh(config)


def test_devices_that_share_an_image_are_neighbours() -> None:
    shared = sharding.make_mesh(MeshConfig(2, -1), sequence=2)
    assert dict(shared.shape) == {"data": 2, "fsdp": 2, "sequence": 2}
    numbers = [device.id for device in shared.devices.ravel()]
    assert numbers == [device.id for device in jax.devices()]
    assert sharding.batch_devices(shared) == 4 and sharding.batch_devices(mesh(2, 4)) == 8
    # Training keeps its two axes.
    assert sharding.make_mesh(MeshConfig(2, -1), sequence=1) == mesh(2, 4)
    with pytest.raises(ValueError, match="sequence 3 does not divide 8 devices"):
        sharding.make_mesh(MeshConfig(), sequence=3)


def test_batch_is_split_over_all_devices() -> None:
    images = np.arange(16.0, dtype=np.float32).reshape(16, 1, 1, 1)
    placed = sharding.place_batch({"image": images}, mesh(2, 4))["image"]
    shards = sorted(placed.addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.ravel().tolist() for shard in shards] == [
        [2.0 * i, 2.0 * i + 1] for i in range(8)
    ]
    assert float(jnp.sum(placed)) == images.sum()
