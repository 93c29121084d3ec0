"""AdamW against its formula in numpy, schedules, clipping, frozen parameters."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lit_jax import sharding
from lit_jax.config import EmaConfig, MeshConfig, OptimizerConfig
from lit_jax.models import functional, registry
from lit_jax.training.came import came, torch_tensors
from lit_jax.training.optimizer import (
    ema_decay,
    frozen_mask,
    learning_rate,
    make_optimizer,
    update_ema,
)

NETWORK = registry.model_config(
    "PixArt",
    mixer="linear",
    num_heads=1,
    hidden_size=16,
    depth=2,
    input_size=4,
    caption_channels=8,
    model_max_length=5,
)
SHAPES = {"blocks": {"attn": {"q": {"kernel": (2, 3, 3)}}}, "final": {"bias": (4,)}}


def tree(seed: int, scale: float = 1.0) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * generator.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def thaw(params: Any) -> Any:
    return jax.tree.map(lambda _: False, params)


def run(config: OptimizerConfig, gradients: list[Any], frozen: Any, total: int = 10) -> list[Any]:
    """Parameters after each gradient."""
    optimizer = make_optimizer(config, total, frozen, NETWORK)
    params, found = tree(0), []
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def adamw(config: OptimizerConfig, gradients: list[Any], total: int = 10) -> list[list[np.ndarray]]:
    """Loshchilov & Hutter 2019, Algorithm 2, in float64, after clipping by the global norm."""
    rate = learning_rate(config, total)
    params = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree(0))]
    m = [np.zeros_like(p) for p in params]
    v = [np.zeros_like(p) for p in params]
    found = []
    for index, gradient in enumerate(gradients):
        g = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in g))
        factor = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for i, leaf in enumerate(g):
            m[i] = config.b1 * m[i] + (1 - config.b1) * factor * leaf
            v[i] = config.b2 * v[i] + (1 - config.b2) * (factor * leaf) ** 2
            m_hat = m[i] / (1 - config.b1 ** (index + 1))
            v_hat = v[i] / (1 - config.b2 ** (index + 1))
            step = m_hat / (np.sqrt(v_hat) + config.eps) + config.weight_decay * params[i]
            params[i] = params[i] - float(rate(index)) * step
        found.append([p.copy() for p in params])
    return found


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 1e9])
def test_adamw_and_clipping_follow_the_formula(clip_norm: float) -> None:
    config = OptimizerConfig(
        learning_rate=0.1, schedule="cosine", warmup_steps=2, weight_decay=0.01, clip_norm=clip_norm
    )
    # Adam forgets a constant factor of all gradients; norms that differ show the clipping.
    gradients = [tree(1), tree(2, 30.0), tree(3, 0.01), tree(4)]
    found = run(config, gradients, thaw(tree(0)))
    for params, expected in zip(found, adamw(config, gradients), strict=True):
        for leaf, reference in zip(jax.tree.leaves(params), expected, strict=True):
            np.testing.assert_allclose(leaf, reference, rtol=2e-5, atol=1e-6)


def test_clipping_has_an_effect() -> None:
    gradients = [tree(1), tree(2, 30.0), tree(4)]
    free, clipped = (
        run(OptimizerConfig(learning_rate=0.1, clip_norm=norm), gradients, thaw(tree(0)))[-1]
        for norm in (0.0, 1.0)
    )
    assert np.abs(np.asarray(free["final"]["bias"] - clipped["final"]["bias"])).max() > 1e-2


def test_schedules() -> None:
    def rates(total: int, **settings: Any) -> list[float]:
        rate = learning_rate(OptimizerConfig(learning_rate=0.5, **settings), total)
        return [float(rate(step)) for step in range(total + 1)]

    assert rates(4) == [0.5] * 5
    np.testing.assert_allclose(rates(6, warmup_steps=4), [0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    cosine = 0.25 * (1 + np.cos(np.pi * np.arange(5) / 4))
    np.testing.assert_allclose(rates(4, schedule="cosine"), cosine, atol=1e-7)
    warm = rates(6, schedule="cosine", warmup_steps=2)
    np.testing.assert_allclose(warm, [0, 0.25, *cosine], atol=1e-7)


def test_schedule_errors() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'.*constant, cosine"):
        learning_rate(OptimizerConfig(schedule="cosin"), 10)
    with pytest.raises(ValueError, match="warmup_steps 10 is not below total_steps 10"):
        learning_rate(OptimizerConfig(warmup_steps=10), 10)


def test_frozen_parameters_stay_and_have_no_moments() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, clip_norm=1.0)
    mask = frozen_mask(tree(0), ("attn/q",))
    assert mask == {"blocks": {"attn": {"q": {"kernel": True}}}, "final": {"bias": False}}
    params = run(config, [tree(1), tree(2)], mask)[-1]
    start = tree(0)
    frozen = params["blocks"]["attn"]["q"]["kernel"]
    np.testing.assert_array_equal(frozen, start["blocks"]["attn"]["q"]["kernel"])
    assert not np.array_equal(params["final"]["bias"], start["final"]["bias"])

    state = make_optimizer(config, 10, mask, NETWORK).init(start)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * 4
    state = make_optimizer(config, 10, thaw(start), NETWORK).init(start)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * (4 + 18)


def test_frozen_gradients_do_not_count_in_the_norm() -> None:
    config = OptimizerConfig(learning_rate=0.1, clip_norm=0.5, eps=1.0)
    mask = frozen_mask(tree(0), ("blocks",))
    small = [tree(1), tree(2)]
    huge = [{**g, "blocks": jax.tree.map(lambda x: 1e3 * x, g["blocks"])} for g in small]
    first, second = (run(config, gradients, mask)[-1] for gradients in (small, huge))
    np.testing.assert_array_equal(first["final"]["bias"], second["final"]["bias"])


def test_freezing_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="'attn/w' matches no parameter"):
        frozen_mask(tree(0), ("attn/q", "attn/w"))


def test_ema_decay() -> None:
    steps = jnp.asarray([0, 1, 90, 10_000])
    np.testing.assert_allclose(ema_decay(EmaConfig(decay=0.95), steps), 0.95)
    warm = ema_decay(EmaConfig(decay=0.95, warmup=True), steps)
    np.testing.assert_allclose(warm, [0.1, 2 / 11, 0.91, 0.95], rtol=1e-6)
    mixed = update_ema({"a": jnp.float32(1)}, {"a": jnp.float32(3)}, jnp.float32(0.75))
    assert float(mixed["a"]) == 1.5


def test_came_by_name_on_a_sharded_network() -> None:
    """The row "came" is CAME on the torch tensors of the network, its state has a place on any mesh
    and the frozen null caption none."""
    params = functional.init_params(NETWORK, jax.random.key(0))
    frozen = frozen_mask(params, functional.buffer_paths(NETWORK))
    config = OptimizerConfig(name="came", learning_rate=0.01, b1=0.8, b2=0.99, weight_decay=0.1)
    optimizer = make_optimizer(config, 10, frozen, NETWORK)
    state = optimizer.init(params)
    gradient = jax.tree.map(jnp.cos, params)
    updates, _ = jax.jit(optimizer.update)(gradient, state, params)
    assert not np.any(updates["y_embedder"]["null_caption"])

    trained = jax.tree.map(lambda leaf: leaf, params)
    del trained["y_embedder"]["null_caption"]
    del gradient["y_embedder"]["null_caption"], updates["y_embedder"]["null_caption"]
    alone = came(0.01, torch_tensors(NETWORK), b1=0.8, b2=0.99, weight_decay=0.1)
    expected, _ = alone.update(gradient, alone.init(trained), trained)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), updates, expected)

    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4))
    places = functional.shardings(NETWORK, mesh, jax.eval_shape(optimizer.init, params))
    split = [place for place in jax.tree.leaves(places) if "fsdp" in place.spec]
    assert len(split) >= 10  # first moments of the projections


def test_refused() -> None:
    with pytest.raises(ValueError, match="optimizer.name 'cane'.*came"):
        make_optimizer(OptimizerConfig(name="cane"), 10, thaw(tree(0)), NETWORK)
    with pytest.raises(ValueError, match="optimizer.eps is 0.1, but CAME has two of its own"):
        make_optimizer(OptimizerConfig(name="came", eps=0.1), 10, thaw(tree(0)), NETWORK)
