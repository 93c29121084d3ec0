"""Devices that share an image: what the compiled program sends between them, and that the rows of
tokens they hold make the image of one device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks.collectives import sent
from lit_jax import sharding
from lit_jax.config import MeshConfig
from lit_jax.models import functional, registry
from lit_jax.models.conditions import TextCondition
from lit_jax.models.registry import DenoiserConfig
from support import tiny_runs

SIZE: dict[str, Any] = {
    "input_size": (64, 16),
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
}
LABELLED = SIZE | {"num_classes": 10}
CAPTIONED = SIZE | {"caption_channels": 12, "model_max_length": 5}

SUM, NEIGHBOURS, ALL = "all-reduce", "collective-permute", "all-gather"
# Model, its fields, and the only kinds of communication in its program.
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "LiT": ("LiT", LABELLED | {"kernel_size": 5}, {SUM, NEIGHBOURS}),
    "focused": ("DiT", LABELLED | {"mixer": "focused", "kernel_size": 3}, {SUM, NEIGHBOURS}),
    "SANA": ("DiT", LABELLED | {"mixer": "sana", "kernel_size": None}, {SUM}),
    "CLEAR": ("CLEAR", LABELLED | {"window_size": 4}, {NEIGHBOURS}),
    "CLEAR, pooled": ("CLEAR", LABELLED | {"window_size": 4, "down_factor": 4}, {NEIGHBOURS, ALL}),
    "PixArt-LiT": ("PixArt", CAPTIONED | {"mixer": "linear", "kernel_size": 5}, {SUM, NEIGHBOURS}),
    # What the other rows must not look like.
    "softmax": ("DiT", LABELLED, {ALL}),
}


def shared_by(devices: int) -> Mesh:
    """All eight devices, an image on `devices` of them."""
    return sharding.make_mesh(MeshConfig(), sequence=devices)


def inputs(config: DenoiserConfig, images: int) -> tuple[Any, ...]:
    """Parameters, x, t and condition."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((images, *config.image_size, 4)).astype(np.float32)
    t = (np.arange(images) * 97).astype(np.int32)
    if "caption_channels" not in vars(config):
        return tiny_runs.random_params(config), x, t, np.arange(images, dtype=np.int32)
    tokens = generator.standard_normal((images, 5, 12)).astype(np.float32)
    cond = TextCondition(jnp.asarray(tokens), jnp.asarray(np.arange(5) < np.full((images, 1), 3)))
    return tiny_runs.random_params(config), x, t, cond


def compiled(network: Any, given: tuple[Any, ...]) -> Any:
    """The program, compiled in half the time: without the optimisations of LLVM."""
    lowered = jax.jit(network).lower(*given)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("case", CASES)
def test_what_devices_exchange(case: str) -> None:
    """Four devices per image, two groups of them with two images each, as guidance has."""
    name, fields, expected = CASES[case]
    config = registry.model_config(name, **fields)
    network, given, mesh = functional.apply_fn(config), inputs(config, 4), shared_by(4)
    placed = jax.device_put(given, sharding.replicated(mesh))
    program = compiled(sharding.split_rows(network, mesh), placed)
    received = sent(program.as_text())
    assert set(received) == expected
    out = program(*placed)
    # A device holds 16 rows of 2 images.
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 16, 16, 8)}
    wanted = compiled(network, given)(*given)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    # No sum over channels of every token, and of all tokens only the pooled ones.
    tokens = 4 * 2 * config.num_tokens * config.hidden_size
    whole = tokens if case == "softmax" else tokens // 16
    assert all(size <= whole for kind in (SUM, ALL) for size in received.get(kind, []))
    # Neighbours get less at a time than a device holds.
    assert all(size < tokens // 4 for size in received.get(NEIGHBOURS, []))
