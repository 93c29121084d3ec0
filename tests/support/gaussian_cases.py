"""Data whose diffusion has a closed form: every number is drawn from N(MEAN, DEVIATION^2).

Then x_t is N(alpha_t MEAN, V_t) with V_t = alpha_t^2 DEVIATION^2 + sigma_t^2. The best prediction
of x_0 is linear in x_t, and so is the solution of the probability-flow ODE, which carries quantiles
to quantiles: (x_t - alpha_t MEAN) / sqrt(V_t) is the same at all times.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.diffusion.dpm_solver import SolverSteps
from lit_jax.diffusion.gaussian import create_process

MEAN, DEVIATION = 0.3, 0.5
FULL = create_process()


def denoiser(x: jax.Array, t_B: jax.Array) -> jax.Array:
    """Return the exact noise prediction, sigma (x - alpha MEAN) / V, with log alpha linear between
    timesteps."""
    log_abar = jnp.asarray(np.log(FULL.alphas_cumprod), jnp.float32)
    log_abar_B = jnp.interp(t_B.astype(jnp.float32), jnp.arange(1000.0), log_abar)
    abar = jnp.exp(log_abar_B)[:, None, None, None]
    noise = -jnp.expm1(log_abar_B)[:, None, None, None]
    return jnp.sqrt(noise) * (x - jnp.sqrt(abar) * MEAN) / (abar * DEVIATION**2 + noise)


def spread(alpha: Any, sigma: Any) -> Any:
    """Return V, the variance of x where the signal has level alpha and the noise level sigma."""
    return alpha**2 * DEVIATION**2 + sigma**2


def predicted_image(x: Any, alpha: Any, sigma: Any) -> Any:
    """Return E[x_0 | x_t = x]."""
    return MEAN + alpha * DEVIATION**2 / spread(alpha, sigma) * (x - alpha * MEAN)


def ode_solution(x: Any, start: tuple[Any, Any], end: tuple[Any, Any]) -> Any:
    """Return the solution of the probability-flow ODE from x, between two (alpha, sigma)."""
    scale = np.sqrt(spread(*end) / spread(*start))
    return end[0] * MEAN + scale * (x - start[0] * MEAN)


def solve(steps: SolverSteps, x: np.ndarray, count: int) -> np.ndarray:
    """Return x after the first `count` steps, in float64."""
    newest_first: list[np.ndarray] = []
    for i in range(count):
        newest_first.insert(0, predicted_image(x, steps.alphas_n[i], steps.sigmas_n[i]))
        x = steps.x_weights_n[i] * x
        for weight, prediction in zip(steps.weights_nxk[i], newest_first, strict=False):
            x = x + weight * prediction
    return x
