"""The compiled sampler on captions: what its images depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from lit_jax import sharding
from lit_jax.config import MeshConfig
from lit_jax.config.protocol import CAPTIONS
from lit_jax.diffusion.gaussian import create_process
from lit_jax.diffusion.guidance import guided
from lit_jax.diffusion.samplers import SAMPLERS, per_image_noise
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import abstract_params, apply_fn, shardings
from lit_jax.sampling.sampler import (
    check_protocol,
    function_evaluations,
    make_sampler,
    prompt_keys,
)
from support.attention_cases import random_like
from support.generate_cases import PROMPTS
from support.pixart_cases import tiny

COUNT, LENGTH = 5, 4
CONFIG = tiny(in_channels=4, depth=2)
PROTOCOL = dataclasses.replace(CAPTIONS, steps="3", seed=2)


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [N, L, D] and masks [N, L] of some captions, and one of nothing [L, D]."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((COUNT, LENGTH, CONFIG.caption_channels), np.float32)
    mask = (np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (COUNT, 1))).astype(np.int32)
    return tokens, mask, rng.standard_normal(tokens.shape[1:], np.float32)


def select(index_B: np.ndarray) -> tuple[jax.Array, TextCondition, TextCondition]:
    tokens, mask, null = inputs()
    keys = prompt_keys(PROTOCOL.seed, [PROMPTS[i] for i in index_B], [0] * len(index_B))
    nothing = np.tile(null, (len(index_B), 1, 1))
    cond = TextCondition(tokens[index_B], mask[index_B])
    return keys, cond, TextCondition(nothing, mask[index_B])


def drawn(devices: int, batch_size: int, progress: Any = None, **changes: Any) -> np.ndarray:
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    abstract = abstract_params(CONFIG)
    params = jax.device_put(random_like(abstract), shardings(CONFIG, mesh))
    protocol = dataclasses.replace(PROTOCOL, **changes)
    draw = make_sampler(CONFIG, protocol, mesh, (6, 4), progress=progress)
    parts = []
    for first in range(0, COUNT, batch_size):
        index_B = np.minimum(np.arange(first, first + batch_size), COUNT - 1)
        latents, decoded = draw(params, None, *select(index_B))
        assert decoded is None
        parts.append(np.asarray(latents)[: COUNT - first])
    return np.concatenate(parts)


def test_neither_batches_nor_devices() -> None:
    latents = drawn(8, 8)
    assert latents.shape == (COUNT, 6, 4, 4) and latents.dtype == np.float32
    np.testing.assert_allclose(drawn(1, 2), latents, rtol=1e-4, atol=1e-3)
    assert np.abs(drawn(1, 2, cfg_scale=1.0) - latents).max() > 0.1


def test_is_the_sampler_around_the_guided_network() -> None:
    keys, cond, null_cond = select(np.arange(COUNT))
    params, network = random_like(abstract_params(CONFIG)), apply_fn(CONFIG)
    x_T, noise_fn = per_image_noise(keys, (6, 4, 4))
    model = guided(lambda x, t, c: network(params, x, t, c), cond, null_cond, 4.5, "all")
    expected = SAMPLERS["dpm_solver"](model, create_process("3"), x_T, noise_fn)
    np.testing.assert_allclose(drawn(1, COUNT), expected, rtol=1e-4, atol=1e-3)


def test_progress_hears_of_every_step() -> None:
    steps: list[int] = []
    drawn(1, 3, lambda step: steps.append(int(step)))
    jax.effects_barrier()
    assert sorted(steps) == [0, 0, 1, 1, 2, 2]  # two batches


def test_keys_are_functions_of_seed_prompt_and_number() -> None:
    data = jax.random.key_data(prompt_keys(7, ["a", "b", "a", "a"], [0, 0, 1, 0]))
    rows = [tuple(row) for row in np.asarray(data).tolist()]
    assert rows[0] == rows[3] and len(set(rows)) == 3
    other = np.asarray(jax.random.key_data(prompt_keys(8, ["a"], [0])))
    assert rows[0] != tuple(other[0].tolist())
    # Written down, so that no release changes the images of a seed.
    assert rows[0] == (2780754365, 501302648)


def test_function_evaluations() -> None:
    assert function_evaluations(CAPTIONS) == 40
    assert function_evaluations(dataclasses.replace(CAPTIONS, cfg_scale=1.0, steps="14")) == 14


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"sampler": "dpm"}, "unknown sampler 'dpm'"),
        ({"cfg_channels": "two"}, "unknown guidance channels 'two'"),
        ({"cfg_scale": float("inf")}, "cfg_scale is inf; it must be a finite number"),
        ({"seed": 2**32}, "seed 4294967296 is not in 0..4294967295"),
        ({"steps": "ddim50"}, "'ddim50' pick timesteps, but a DPM solver chooses its own"),
        ({"steps": "2000", "sampler": "ddim"}, "asks for 2000 steps of a section of 1000"),
    ],
)
def test_protocols_that_are_refused(changes: dict[str, Any], named: str) -> None:
    check_protocol(PROTOCOL, CONFIG)
    with pytest.raises(ValueError, match=named):
        check_protocol(dataclasses.replace(PROTOCOL, **changes), CONFIG)
