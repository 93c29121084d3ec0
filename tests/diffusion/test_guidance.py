"""Classifier-free guidance: channels, timesteps, and number of network evaluations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.diffusion.gaussian import create_process
from lit_jax.diffusion.guidance import guided, num_function_evaluations
from lit_jax.diffusion.samplers import SAMPLERS, ddim

B, C = 3, 4
X = jax.random.normal(jax.random.key(0), (B, 2, 2, C))
T = jnp.array([900, 500, 100])
COND, NULL = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(B)


def network(x: jax.Array, t_B: jax.Array, cond_B: jax.Array) -> jax.Array:
    """Return some function of image, time and condition with twice the channels."""
    scale = (1.0 + cond_B + 1e-3 * t_B)[:, None, None, None]
    return jnp.concatenate([jnp.sin(scale * x), jnp.cos(scale * x)], axis=-1)


class Counter:
    """The function `network` with records of traced batch sizes and executed evaluations."""

    def __init__(self) -> None:
        self.traced: list[int] = []
        self.executed: list[int] = []

    def __call__(self, x: jax.Array, t_B: jax.Array, cond_B: jax.Array) -> jax.Array:
        self.traced.append(len(x))
        jax.debug.callback(lambda size: self.executed.append(int(size)), jnp.array(len(x)))
        return network(x, t_B, cond_B)


@pytest.mark.parametrize(("channels", "count"), [("three", 3), ("all", 4)])
def test_guided_channels_are_extrapolated_and_the_others_conditional(
    channels: str, count: int
) -> None:
    cond, null = network(X, T, COND), network(X, T, NULL)
    out = guided(network, COND, NULL, 2.5, channels)(X, T)
    expected = null[..., :count] + 2.5 * (cond - null)[..., :count]
    np.testing.assert_allclose(out[..., :count], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[..., count:], cond[..., count:])
    assert np.abs(cond - null).max() > 0.1


def test_three_channels_never_reach_the_variance_of_a_grey_image() -> None:
    x = X[..., :1]
    cond, null = network(x, T, COND), network(x, T, NULL)
    out = guided(network, COND, NULL, 2.0, "three")(x, T)
    np.testing.assert_allclose(out[..., 0], (2 * cond - null)[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[..., 1], cond[..., 1])


def test_scale_one_runs_the_plain_batch_once() -> None:
    counter = Counter()
    out = guided(counter, COND, NULL, 1.0, "all")(X, T)
    np.testing.assert_array_equal(out, network(X, T, COND))
    assert counter.traced == [B]
    guided(counter, COND, NULL, 1.5, "all")(X, T)
    assert counter.traced == [B, 2 * B]


def test_scale_zero_is_unconditional() -> None:
    out = guided(network, COND, NULL, 0.0, "all")(X, T)
    np.testing.assert_array_equal(out[..., :C], network(X, T, NULL)[..., :C])


def test_conditions_may_be_trees() -> None:
    def by_tree(x: jax.Array, t_B: jax.Array, cond: dict[str, Any]) -> jax.Array:
        return network(x, t_B, cond["label"] + cond["text"].sum((1, 2)))

    def tree(cond_B: jax.Array) -> dict[str, Any]:
        return {"label": 0.5 * cond_B, "text": jnp.tile(cond_B[:, None, None] / 12, (1, 2, 3))}

    out = guided(by_tree, tree(COND), tree(NULL), 1.7, "all")(X, T)
    np.testing.assert_allclose(out, guided(network, COND, NULL, 1.7, "all")(X, T), atol=1e-5)


@pytest.mark.parametrize("t", [299, 300, 500, 700, 701])
def test_outside_the_interval_the_null_half_is_skipped(t: int) -> None:
    counter, t_B = Counter(), jnp.full(B, t)
    out = jax.jit(guided(counter, COND, NULL, 2.5, "all", (300, 700)))(X, t_B)
    jax.effects_barrier()
    inside = 300 <= t <= 700
    everywhere = guided(network, COND, NULL, 2.5, "all")(X, t_B)
    expected = everywhere if inside else network(X, t_B, COND)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert counter.executed == [2 * B if inside else B]
    assert np.abs(everywhere - network(X, t_B, COND)).max() > 0.1


def test_images_with_different_timesteps_follow_their_own() -> None:
    out = guided(network, COND, NULL, 2.5, "all", (300, 700))(X, T)
    expected = network(X, T, COND).at[1].set(guided(network, COND, NULL, 2.5, "all")(X, T)[1])
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "interval", "expected"),
    [
        (1.0, None, 20),
        (4.0, None, 40),
        (1.0, (0, 999), 20),
        (4.0, (105, 473), 28),
        (4.0, (1, 2), 20),
    ],
)
def test_evaluations_are_counted_exactly(
    scale: float, interval: tuple[int, int] | None, expected: int
) -> None:
    """Use "20", whose steps are 0, 53, 105, ..., 473, ...: eight of them lie in [105, 473]."""
    counter, process = Counter(), create_process("20")
    denoiser = guided(counter, COND, NULL, scale, "all", interval)
    jax.jit(lambda x: ddim(denoiser, process, x, lambda i: X))(X)
    jax.effects_barrier()
    assert sum(counter.executed) == expected * B
    assert num_function_evaluations(SAMPLERS["ddim"].times(process), scale, interval) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ddpm", 27), ("dpm_solver", 27), ("dpm_solver_logsnr", 24), ("dpm_solver_diffusers", 28)],
)
def test_every_sampler_is_counted_at_its_own_times(name: str, expected: int) -> None:
    """Count in [100, 450]: 105 to 421 of the timesteps of DDPM and 149.85 to 449.55 of the
    fractional ones of DPM-Solver are 7 each, 138 to 399.3 of those even in lambda are 4; 100 to
    450 of the integer ones of diffusers are 8."""
    counter, process = Counter(), create_process("20")
    sampler, interval = SAMPLERS[name], (100, 450)
    denoiser = guided(counter, COND, NULL, 4.0, "all", interval)
    jax.jit(lambda x: sampler(denoiser, process, x, lambda i: X))(X)
    jax.effects_barrier()
    assert sum(counter.executed) == expected * B
    assert num_function_evaluations(sampler.times(process), 4.0, interval) == expected


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'three'.*known: all, three"):
        guided(network, COND, NULL, 2.0, "threee")
    for call in (
        lambda: guided(network, COND, NULL, 2.0, "all", (700, 300)),
        lambda: num_function_evaluations(np.arange(20), 2.0, (700, 300)),
    ):
        with pytest.raises(ValueError, match=r"\(700, 300\) is empty"):
            call()
