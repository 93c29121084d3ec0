"""CAME against a second implementation on torch tensors, and what its state holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lit_jax.checkpoints.convert import export_params
from lit_jax.models import functional, registry
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.sharding import path_string
from lit_jax.training.came import came, torch_tensors
from support.pixart_cases import quick_jit, tiny
from support.tiny_runs import random_params

RATE = 0.01
NETWORKS: dict[str, tuple[str, PixArtConfig]] = {
    "PixArt": (
        "pixart",
        tiny(
            qk_norm=True,
            kv_compress_config=KVCompressConfig("conv", 2, (1, 2)),
        ),
    ),
    "LiT": ("lit", tiny(mixer="linear")),
}


def reference(
    start: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]], weight_decay: float
) -> dict[str, np.ndarray]:
    """Every tensor of a state dict on its own, in float64, after Algorithm 2 of the paper."""
    params = {key: value.astype(np.float64) for key, value in start.items()}
    for key, p in params.items():
        m, v, R, C, U, S = np.zeros_like(p), np.zeros_like(p), 0.0, 0.0, 0.0, 0.0
        for tree in gradients:
            g = tree[key].astype(np.float64)
            u = g**2 + 1e-30
            if p.ndim >= 2:
                R = 0.999 * R + 0.001 * u.mean(-1, keepdims=True)
                C = 0.999 * C + 0.001 * u.mean(-2, keepdims=True)
                u = g / np.sqrt(R * C / R.mean(-2, keepdims=True))
            else:
                v = 0.999 * v + 0.001 * u
                u = g / np.sqrt(v)
            u = u / max(1.0, np.sqrt((u**2).mean()))
            m = 0.9 * m + 0.1 * u
            step = m
            if p.ndim >= 2:
                r = (u - m) ** 2 + 1e-16
                U = 0.9999 * U + 0.0001 * r.mean(-1, keepdims=True)
                S = 0.9999 * S + 0.0001 * r.mean(-2, keepdims=True)
                step = m / np.sqrt(U * S / U.mean(-2, keepdims=True))
            p = p - RATE * (weight_decay * p + step)
        params[key] = p
    return params


def run(optimizer: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    state, update = quick_jit(optimizer.init)(params), quick_jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def gradients_of(config: PixArtConfig) -> list[Any]:
    """Of norms that differ by network part, so that every mean matters; the first is tiny."""
    trees = [random_params(config, seed, scale) for seed, scale in ((1, 1e-6), (2, 3.0), (3, 0.1))]
    return [jax.tree.map(lambda leaf: leaf * np.exp(2 * leaf[..., :1]), tree) for tree in trees]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_updated_as_its_torch_checkpoint(name: str) -> None:
    """Fused q, k and v, convolutions, stacked vectors: all in the layout of the checkpoint."""
    layout, config = NETWORKS[name]
    params, gradients = random_params(config), gradients_of(config)
    optimizer = came(RATE, torch_tensors(config), weight_decay=0.5)
    found = export_params(run(optimizer, params, gradients), config, layout)
    exported = [export_params(tree, config, layout) for tree in gradients]
    start = export_params(params, config, layout)
    for key in start.keys() & {"pos_embed"}:  # no parameter
        for tree in (start, found, *exported):
            del tree[key]
    expected = reference(start, exported, 0.5)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
        assert np.abs(value - start[key]).max() > 1e-3, key


def waves() -> tuple[Any, list[Any]]:
    """Parameters and three gradients of a matrix and a vector."""

    def wave(shape: tuple[int, ...], frequency: float) -> jax.Array:
        k = np.arange(np.prod(shape)).reshape(shape)
        return jnp.asarray(np.sin(frequency * k), jnp.float32)

    params = {"w": wave((3, 4), 0.3), "b": wave((5,), 0.7)}
    return params, [{"w": wave((3, 4), 0.5 + s), "b": wave((5,), 0.9 + s)} for s in range(3)]


def test_the_known_values() -> None:
    found = run(came(0.01), *waves())
    w = [0, -0.1050322, 0.3227254, 0.5652966, 0.7139662, 0.5908695, 0.7217171, 1.227218]
    w += [0.9309981, 0.6102306, 0.2734129, 0.0829156]
    np.testing.assert_allclose(found["w"].ravel(), w, atol=2e-6)
    b = [0, 0.6386205, 0.9847288, 0.8608581, 0.3368359]
    np.testing.assert_allclose(found["b"], b, atol=2e-6)


def test_every_option_has_an_effect() -> None:
    params, gradients = waves()
    plain = run(came(RATE), params, gradients)
    options: dict[str, Any] = {
        "b1": 0.5,
        "b2": 0.5,
        "b3": 0.5,
        "eps": (1.0, 1e-16),
        "clip_threshold": 0.1,
        "weight_decay": 0.5,
    }
    for name, value in [*options.items(), ("eps", (1e-30, 1.0))]:
        other = run(came(RATE, **{name: value}), params, gradients)
        assert max(np.abs(other[key] - plain[key]).max() for key in plain) > 1e-3, name
    schedule = optax.schedules.linear_schedule(0.0, RATE, 2)
    once = run(came(schedule), params, gradients[:1])
    np.testing.assert_array_equal(once["w"], params["w"])


def test_frozen_parameters_have_no_moments() -> None:
    """The others are as before; a frozen q leaves k and v as a torch tensor of their own."""
    config = NETWORKS["PixArt"][1]
    params, *gradients = (
        {"blocks": {"attn": tree["blocks"]["attn"]}}
        for tree in (random_params(config), *gradients_of(config))
    )
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if "attn/q" in path_string(path) else "trained", params
    )
    optimizer = optax.multi_transform(
        {"trained": came(RATE, torch_tensors(config)), "frozen": optax.set_to_zero()}, frozen
    )
    found = run(optimizer, params, gradients)
    plain = run(came(RATE, torch_tensors(config)), params, gradients)
    for name, same in {"q": params, "out": plain}.items():
        kernel = same["blocks"]["attn"][name]["kernel"]
        np.testing.assert_allclose(found["blocks"]["attn"][name]["kernel"], kernel, rtol=1e-5)
    k_alone, k_with_q = (tree["blocks"]["attn"]["k"]["kernel"] for tree in (found, plain))
    assert np.abs(k_alone - k_with_q).max() > 1e-4
    state = jax.eval_shape(optimizer.init, params).inner_states["trained"].inner_state[0]
    depth, D = config.depth, config.hidden_size
    assert state.second["blocks.attn.qkv.weight"].row.shape == (depth, 2 * D)
    assert not jax.tree.leaves(state.first["blocks"]["attn"]["q"])


def test_a_parameter_of_unknown_layout_is_refused() -> None:
    config = NETWORKS["PixArt"][1]
    with pytest.raises(ValueError, match="'extra' is in no row of the layout 'pixart'"):
        came(RATE, torch_tensors(config)).init({"extra": jnp.zeros(3)})


def test_the_state_is_little_more_than_one_copy_of_the_parameters() -> None:
    """LiT-0.6B: AdamW keeps two copies."""
    config = registry.model_config("LiT-0.6B")
    params = functional.abstract_params(config)
    state = jax.eval_shape(came(RATE, torch_tensors(config)).init, params)
    size, kept = (sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (params, state))
    assert 1.0 < kept / size < 1.005
