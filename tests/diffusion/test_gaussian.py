"""Single equations and single steps against the official numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.diffusion.gaussian import (
    create_process,
    epsilon_from_x_start,
    original_timesteps,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
    x_start_from_epsilon,
)
from lit_jax.diffusion.samplers import ddim_reverse, ddim_sample, p_sample
from support.golden_cases import golden_sources, load_arrays, nhwc, relative_error

SOURCES = golden_sources("diffusion_steps.npz")
SINGLE_STEP = 2e-5
# A clipped x_0 has scale 1, while at t = 999 it comes from noise predictions multiplied by 157:
# their last-bit differences alone are worth 4e-5 of that scale.
CLIPPED_STEP = 1e-4


def waves(frequency: float, shape_NCHW: tuple[int, ...], offset: float = 0.0) -> np.ndarray:
    """Return sin(frequency * k + offset) at flat NCHW index k, as NHWC float32."""
    k = np.arange(np.prod(shape_NCHW)).reshape(shape_NCHW)
    return nhwc(np.sin(frequency * k + offset)).astype(np.float32)


@pytest.mark.parametrize("folder", SOURCES)
def test_forward_process_equals_the_official_one(folder: Path) -> None:
    arrays = load_arrays(folder, "diffusion_steps")
    process, i_B = create_process(), jnp.asarray(arrays["t"])
    x_start, noise = nhwc(arrays["x_start"]), nhwc(arrays["noise"])
    x_t = q_sample(process, x_start, i_B, noise)
    assert relative_error(x_t, nhwc(arrays["q_sample"])) < SINGLE_STEP
    q = q_mean_variance(process, x_start, i_B)
    posterior = q_posterior(process, x_start, x_t, i_B)
    for value, name in [*zip(q, ("q_mean", "q_var", "q_logvar"), strict=True)] + [
        *zip(posterior, ("q_post_mean", "q_post_var", "q_post_logvar"), strict=True)
    ]:
        np.testing.assert_allclose(value, nhwc(arrays[name]), rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("clip", [True, False])
def test_reverse_steps_equal_the_official_ones(
    folder: Path, clip: bool, golden_dit: Callable[[Path], Any]
) -> None:
    arrays, model = load_arrays(folder, "diffusion_steps"), golden_dit(folder)
    process, i_B = create_process(), jnp.asarray(arrays["t"])
    x_t = nhwc(arrays["q_sample"])
    out = model.apply(model.params, x_t, i_B, arrays["y"])
    tolerance = CLIPPED_STEP if clip else SINGLE_STEP
    prefix = f"clip{int(clip)}"

    step = p_mean_variance(process, out, x_t, i_B, clip)
    names = ("mean", "variance", "log_variance", "pred_xstart")
    for name, value in zip(names, step, strict=True):
        assert relative_error(value, nhwc(arrays[f"p_mv_{prefix}/{name}"])) < tolerance, name

    noise = nhwc(arrays[f"p_sample_{prefix}/noise"])
    sample = p_sample(process, out, x_t, i_B, noise, clip)
    assert relative_error(sample, nhwc(arrays[f"p_sample_{prefix}/sample"])) < SINGLE_STEP
    for eta in (0.0, 0.7):
        sample = ddim_sample(process, out, x_t, i_B, noise, clip, eta)
        expected = nhwc(arrays[f"ddim_sample_{prefix}_eta{eta}/sample"])
        assert relative_error(sample, expected) < tolerance, eta


@pytest.mark.parametrize("folder", SOURCES)
def test_ddim_reverse_and_a_respaced_step_equal_the_official_ones(
    folder: Path, golden_dit: Callable[[Path], Any]
) -> None:
    arrays, model = load_arrays(folder, "diffusion_steps"), golden_dit(folder)
    x_t, labels = nhwc(arrays["q_sample"]), arrays["y"]
    process, i_B = create_process(), jnp.asarray(arrays["t"])
    out = model.apply(model.params, x_t, i_B, labels)
    sample = ddim_reverse(process, out, x_t, i_B)
    assert relative_error(sample, nhwc(arrays["ddim_reverse/sample"])) < SINGLE_STEP

    process, i_B = create_process("20"), jnp.asarray(arrays["resp20/t"])
    t_B = original_timesteps(process, i_B)
    assert t_B.tolist() == [0, 263, 684, 999]
    out = model.apply(model.params, x_t, t_B, labels)
    sample = p_sample(process, out, x_t, i_B, nhwc(arrays["resp20/p_sample_noise"]))
    assert relative_error(sample, nhwc(arrays["resp20/p_sample"])) < SINGLE_STEP


def test_noising_and_reverse_step_have_the_known_values() -> None:
    process, i_B = create_process(), jnp.array([0, 500, 999])
    shape = (3, 4, 8, 8)
    x_t = q_sample(process, waves(0.37, shape), i_B, waves(0.53, shape, np.pi / 2))
    np.testing.assert_allclose(
        nchw(x_t).reshape(3, -1)[:, :3],
        [
            [0.01, 0.370225, 0.679143],
            [-0.670282, -0.208972, 0.338613],
            [0.383259, -0.135608, -0.616412],
        ],
        atol=2e-6,
    )
    step = p_mean_variance(process, waves(0.11, (3, 8, 8, 8)), x_t, i_B)
    np.testing.assert_allclose(
        step.log_variance.mean((1, 2, 3)), [-9.534492, -4.599648, -3.912023], atol=2e-6
    )
    np.testing.assert_allclose(
        step.mean_BxHxWxC.mean((1, 2, 3)), [-4.5561e-4, 8.018417e-3, -1.4683139e-2], atol=2e-7
    )


def test_ddim_step_of_a_respaced_process_has_the_known_values() -> None:
    process, i_B = create_process("250"), jnp.array([0, 100, 249])
    x_t = waves(0.37, (3, 4, 8, 8))
    sample = ddim_sample(process, waves(0.11, (3, 8, 8, 8)), x_t, i_B, jnp.zeros_like(x_t))
    np.testing.assert_allclose(
        sample.mean((1, 2, 3)), [-4.51210e-4, 1.307344e-3, 1.879905e-3], atol=1e-7
    )


def nchw(x_BxHxWxC: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(x_BxHxWxC), -1, 1)


def test_conversions_between_noise_and_image_are_inverse() -> None:
    process, i_B = create_process(), jnp.array([0, 400, 999])
    x_t, epsilon = waves(0.37, (3, 4, 4, 4)), waves(0.53, (3, 4, 4, 4))
    x_start = x_start_from_epsilon(process, x_t, epsilon, i_B)
    np.testing.assert_allclose(epsilon_from_x_start(process, x_t, x_start, i_B), epsilon, atol=2e-4)
    np.testing.assert_allclose(q_sample(process, x_start, i_B, epsilon), x_t, atol=1e-5)


def test_posterior_is_the_bayesian_one() -> None:
    """Compute q(x_{t-1} | x_t, x_0) by Bayes' rule on two Gaussians, in float64."""
    process, i, x_start, x_t = create_process("50"), 17, 0.3, -0.8
    alpha = 1.0 - process.betas[i]
    prior_mean = np.sqrt(process.alphas_cumprod_prev[i]) * x_start
    prior_precision = 1.0 / (1.0 - process.alphas_cumprod_prev[i])
    precision = prior_precision + alpha / process.betas[i]
    mean = (prior_mean * prior_precision + np.sqrt(alpha) * x_t / process.betas[i]) / precision
    image = jnp.ones((1, 1, 1, 1))
    q = q_posterior(process, x_start * image, x_t * image, jnp.array([i]))
    assert q.mean_BxHxWxC.item() == pytest.approx(mean, rel=1e-5)
    assert q.variance.item() == pytest.approx(1.0 / precision, rel=1e-5)


def test_variance_types_span_the_learned_range() -> None:
    """Map v = -1 to the posterior variance and v = +1 to beta, without clamping."""
    i_B, x_t = jnp.array([0, 30]), waves(0.37, (2, 3, 2, 2))
    learned = create_process("50")

    def log_variance(v: float) -> jax.Array:
        out = jnp.concatenate([jnp.zeros_like(x_t), jnp.full_like(x_t, v)], axis=-1)
        return p_mean_variance(learned, out, x_t, i_B).log_variance

    def fixed(var_type: str) -> jax.Array:
        process = create_process("50", var_type=var_type)
        log_variance = p_mean_variance(process, jnp.zeros_like(x_t), x_t, i_B).log_variance
        return jnp.broadcast_to(log_variance, x_t.shape)

    lower, upper = log_variance(-1.0), log_variance(1.0)
    np.testing.assert_allclose(lower, fixed("fixed_small"), rtol=1e-5)
    np.testing.assert_allclose(upper[1:], fixed("fixed_large")[1:], rtol=1e-5)
    np.testing.assert_allclose(log_variance(3.0) - upper, upper - lower, rtol=1e-4)
    # The first step of "fixed_large" has the posterior variance of the second.
    np.testing.assert_allclose(fixed("fixed_large")[0], fixed("fixed_small")[0], rtol=1e-6)
    assert (upper[0] != fixed("fixed_large")[0]).all()


def test_predicting_the_image_and_predicting_its_noise_are_the_same_step() -> None:
    i_B, x_t, epsilon = jnp.array([3, 40]), waves(0.37, (2, 3, 4, 4)), waves(0.53, (2, 3, 4, 4))
    by_noise = create_process("50", var_type="fixed_small")
    by_image = create_process("50", var_type="fixed_small", mean_type="x_start")
    x_start = x_start_from_epsilon(by_noise, x_t, epsilon, i_B)
    for clip in (False, True):
        first = p_mean_variance(by_noise, epsilon, x_t, i_B, clip)
        second = p_mean_variance(by_image, x_start, x_t, i_B, clip)
        np.testing.assert_allclose(first.mean_BxHxWxC, second.mean_BxHxWxC, rtol=1e-6)
        assert (np.abs(second.x_start_BxHxWxC).max() <= 1.0) == clip


def test_a_network_without_variance_channels_is_refused() -> None:
    x_t = jnp.zeros((2, 4, 4, 3))
    with pytest.raises(ValueError, match="returned 3 channels for images of 3.*needs 6"):
        p_mean_variance(create_process("50"), x_t, x_t, jnp.zeros(2, int))


def test_a_process_is_static_under_jit() -> None:
    process = create_process("50")
    x = waves(0.37, (2, 3, 4, 4))
    i_B = jnp.array([0, 49])
    jitted = jax.jit(q_sample, static_argnums=0)(process, x, i_B, x)
    np.testing.assert_allclose(jitted, q_sample(process, x, i_B, x), rtol=1e-6, atol=1e-7)
    assert jitted.dtype == jnp.float32
