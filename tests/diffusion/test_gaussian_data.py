"""Every sampler on data whose diffusion has a closed form, and its order of convergence.

Orders are measured where a solver has its asymptotic behaviour. Even steps in time are long steps
in lambda near the end, for any number of steps, and both solvers lower their order there. With
time-uniform steps the error is therefore measured at half of the time, and over the whole run for
steps that are even in lambda.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.diffusion.dpm_solver import (
    SolverSteps,
    diffusers_steps,
    dpm_solver,
    dpm_solver_diffusers,
    official_steps,
)
from lit_jax.diffusion.gaussian import GaussianProcess, create_process
from lit_jax.diffusion.samplers import ddim, ddpm, image_keys, per_image_noise
from support.gaussian_cases import (
    DEVIATION,
    FULL,
    MEAN,
    denoiser,
    ode_solution,
    predicted_image,
    solve,
    spread,
)

FIRST = (np.sqrt(FULL.alphas_cumprod[0]), np.sqrt(1.0 - FULL.alphas_cumprod[0]))
LAST = (np.sqrt(FULL.alphas_cumprod[-1]), np.sqrt(1.0 - FULL.alphas_cumprod[-1]))
CLEAN = (1.0, 0.0)
SOLVERS: dict[str, Callable[..., SolverSteps]] = {
    "official": official_steps,
    "diffusers": diffusers_steps,
}
# The published third-order update is of second order: see below.
MEASURED_ORDER = {1: 1.0, 2: 2.0, 3: 2.0}


def process_of(num_steps: int) -> GaussianProcess:
    return create_process(str(num_steps), var_type="fixed_small")


def no_noise(i: jax.Array) -> jax.Array:
    raise AssertionError("a deterministic sampler called noise_fn")


def noise_images() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, 4, 4, 4))


def orders_between(counts: list[int], errors: list[Any]) -> np.ndarray:
    """Return -d log(error) / d log(steps) between neighbouring counts."""
    return -np.diff(np.log(errors)) / np.diff(np.log(counts))


def error_at_middle(steps: SolverSteps) -> Any:
    """Return the error of x = 1.3 after half of the steps."""
    n = len(steps.times_n)
    levels = list(zip(steps.alphas_n, steps.sigmas_n, strict=True))
    value = solve(steps, np.array(1.3), n // 2)
    return abs(value - ode_solution(1.3, levels[0], levels[n // 2]))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_converge_with_their_order(solver: str, order: int) -> None:
    counts = [128, 256, 512]
    errors = [error_at_middle(SOLVERS[solver](process_of(n), order)) for n in counts]
    np.testing.assert_allclose(
        orders_between(counts, errors), MEASURED_ORDER[order], atol=0.12, err_msg=str(errors)
    )
    if order == 3:  # no faster than order 2, but better
        assert errors[-1] < error_at_middle(SOLVERS[solver](process_of(512), 2)) / 4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_even_steps_in_lambda_converge_over_the_whole_run(order: int) -> None:
    """Include the last steps, of lower order: their share of the error is negligible."""
    counts, x = [128, 256, 512], np.array(1.3)
    errors = [
        abs(
            solve(official_steps(process_of(n), order, "logSNR"), x, n)
            - ode_solution(x, LAST, FIRST)
        )
        for n in counts
    ]
    np.testing.assert_allclose(orders_between(counts, errors), MEASURED_ORDER[order], atol=0.06)


def test_the_third_order_update_loses_an_order_to_its_second_difference() -> None:
    """Compare with the full weight of the interpolating polynomial, which has order 3, not 2."""

    def completed(steps: SolverSteps) -> SolverSteps:
        lambdas, weights = np.log(steps.alphas_n / steps.sigmas_n), steps.weights_nxk.copy()
        for i in range(2, len(lambdas) - 2):
            h, h0, h1 = np.diff(lambdas[i - 2 : i + 2])[::-1]
            # Half of: integral of e^(l - h) l^2 over [0, h], times the second divided difference.
            integral = h**2 - 2.0 * (h + np.expm1(-h))
            divided = np.array([1 / h0, -1 / h0 - 1 / h1, 1 / h1]) / (h0 + h1)
            weights[i] += 0.5 * steps.alphas_n[i + 1] * integral * divided
        return dataclasses.replace(steps, weights_nxk=weights)

    counts = [32, 64, 128, 256]
    published = [official_steps(process_of(n), 3) for n in counts]
    full = orders_between(counts, [error_at_middle(completed(steps)) for steps in published])
    assert (np.abs(full - 3.0) < 0.2).all(), full
    assert orders_between(counts, [error_at_middle(steps) for steps in published])[-1] < 2.2


def test_ddim_converges_with_order_one() -> None:
    counts, x_T = [20, 80], noise_images()
    exact = ode_solution(np.asarray(x_T, np.float64), LAST, CLEAN)
    errors = []
    for n in counts:
        process = process_of(n)
        x_0 = ddim(denoiser, process, x_T, no_noise)
        mean, variance = propagated(process, 0.0, np.zeros(n))  # of a map mean + deviation * x_T
        np.testing.assert_allclose(x_0, mean + np.sqrt(variance) * x_T, atol=2e-5)
        errors.append(np.abs(x_0 - exact).max())
    np.testing.assert_allclose(orders_between(counts, errors), 1.0, atol=0.06)


# Sampler -> (its steps, where it ends, largest error after 20 steps).
COMPILED: dict[str, tuple[Callable[..., jax.Array], Callable[..., SolverSteps], Any, float]] = {
    "official 1": (
        functools.partial(dpm_solver, order=1),
        functools.partial(official_steps, order=1),
        FIRST,
        0.3,
    ),
    "official 2": (dpm_solver, official_steps, FIRST, 0.1),
    "official 3": (
        functools.partial(dpm_solver, order=3),
        functools.partial(official_steps, order=3),
        FIRST,
        0.1,
    ),
    "logSNR 2": (
        functools.partial(dpm_solver, spacing="logSNR"),
        functools.partial(official_steps, spacing="logSNR"),
        FIRST,
        0.03,
    ),
    "diffusers 2": (dpm_solver_diffusers, diffusers_steps, CLEAN, 0.1),
    "diffusers 3": (
        functools.partial(dpm_solver_diffusers, order=3),
        functools.partial(diffusers_steps, order=3),
        CLEAN,
        0.1,
    ),
}


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_loops_equal_the_float64_driver(case: str) -> None:
    """Show that the orders above are those of the samplers, and that the ODE solution is near."""
    sampler, steps_of, end, tolerance = COMPILED[case]
    process, x_T = process_of(20), noise_images()
    x = np.asarray(x_T, np.float64)
    x_0 = sampler(denoiser, process, x_T, no_noise)
    np.testing.assert_allclose(x_0, solve(steps_of(process), x, 20), atol=2e-5)
    assert np.abs(x_0 - ode_solution(x, LAST, end)).max() < tolerance


# --- stochastic samplers ---

SAMPLES = (64, 64, 32)  # of each of four images: half a million numbers


def propagated(process: GaussianProcess, eta: float, variance_n: np.ndarray) -> tuple[Any, Any]:
    """Return the exact mean and variance of the result; steps are affine and add Gaussian noise.

    x_{t-1} = sqrt(abar') x_0 + sqrt(1 - abar' - eta^2 beta~) epsilon + noise of that variance.
    """
    mean, variance = 0.0, 1.0
    for i in reversed(range(process.num_steps)):
        alpha, sigma = process.sqrt_alphas_cumprod[i], process.sqrt_one_minus_alphas_cumprod[i]
        prev = process.alphas_cumprod_prev[i]
        along = np.sqrt(1.0 - prev - eta**2 * process.posterior_variance[i])

        x = np.array([mean, mean + 1.0])
        x_0 = predicted_image(x, alpha, sigma)
        x = np.sqrt(prev) * x_0 + along * (x - alpha * x_0) / sigma
        mean, variance = x[0], (x[1] - x[0]) ** 2 * variance + (variance_n[i] if i else 0.0)
    return mean, variance


def check_moments(
    sampler: Callable[..., jax.Array], process: GaussianProcess, mean: float, variance: float
) -> None:
    """Allow four standard errors of half a million samples: mean 0.003, variance 0.8%."""
    x_T, noise_fn = per_image_noise(image_keys(jax.random.key(1), jnp.arange(4)), SAMPLES)
    x_0 = jax.jit(lambda: sampler(process=process, x_T_BxHxWxC=x_T, noise_fn=noise_fn))()
    assert x_0.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / x_0.size))
    assert x_0.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / x_0.size))


def test_ddpm_and_ddim_have_their_exact_mean_and_variance() -> None:
    small, large = (create_process("50", var_type=name) for name in ("fixed_small", "fixed_large"))
    beta_tilde = small.posterior_variance
    cases = {
        "small": (ddpm, small, 1.0, beta_tilde),
        "large": (ddpm, large, 1.0, large.betas),
        "eta 1": (functools.partial(ddim, eta=1.0), small, 1.0, beta_tilde),
        "eta 0.6": (functools.partial(ddim, eta=0.6), small, 0.6, 0.36 * beta_tilde),
    }
    expected = {name: propagated(*case[1:]) for name, case in cases.items()}
    for name, (sampler, process, _, _) in cases.items():
        check_moments(functools.partial(sampler, denoiser), process, *expected[name])
    # The cases differ measurably, and all are near the data.
    variances = [expected[name][1] for name in ("large", "eta 0.6", "eta 1")]
    assert (np.diff(variances) < -0.02 * DEVIATION**2).all()
    for mean, variance in expected.values():
        assert mean == pytest.approx(MEAN, abs=2e-3)
        assert variance == pytest.approx(DEVIATION**2, rel=0.25)


def test_the_bias_of_stochastic_samplers_vanishes_with_order_one() -> None:
    counts, errors = [250, 500, 1000], []
    for n in counts:
        process = create_process(str(n), var_type="fixed_large")
        errors.append(abs(propagated(process, 1.0, process.betas)[1] - DEVIATION**2))
    assert errors[-1] < 0.004 * DEVIATION**2
    np.testing.assert_allclose(orders_between(counts, errors), 1.0, atol=0.15)


def test_ddpm_with_the_best_variance_is_exact_in_any_number_of_steps() -> None:
    """Use the true p(x_{t-1} | x_t) of Gaussian data, which is Gaussian: with its variance the
    sampler reproduces the data, except for the noise that the last step omits."""
    process = create_process("8")
    alpha, sigma = process.sqrt_alphas_cumprod, process.sqrt_one_minus_alphas_cumprod
    unknown = DEVIATION**2 * sigma**2 / spread(alpha, sigma)  # of x_0, given x_t
    best = process.posterior_variance + process.posterior_mean_coef1**2 * unknown
    low, high = process.posterior_log_variance_clipped, np.log(process.betas)
    v = jnp.asarray(2.0 * (np.log(best) - low) / (high - low) - 1.0, jnp.float32)
    kept = jnp.asarray(process.timestep_map)

    def network(x: jax.Array, t_B: jax.Array) -> jax.Array:
        v_B = v[jnp.searchsorted(kept, t_B)]
        v_BxHxWxC = jnp.broadcast_to(v_B[:, None, None, None], x.shape)
        return jnp.concatenate([denoiser(x, t_B), v_BxHxWxC], axis=-1)

    check_moments(functools.partial(ddpm, network), process, MEAN, DEVIATION**2 - unknown[0])
