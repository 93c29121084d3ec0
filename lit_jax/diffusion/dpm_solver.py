"""DPM-Solver++ (Lu et al. 2022), multistep, data prediction: the probability-flow ODE in few steps.

Shape letters as in `gaussian.py`; T training timesteps, n solver steps. In lambda = log(alpha /
sigma), half the log signal-to-noise ratio, the ODE from time s to time t has the solution

    x_t = (sigma_t / sigma_s) x_s + sigma_t * integral from lambda_s to lambda_t of e^lambda D,

with D(lambda) the predicted x_0. A step of order k replaces D by a polynomial through the last k
predictions, so that x_t is a fixed linear combination of x_s and them. All weights are float64
numpy tables; one compiled loop reads them, whatever the order and the times.

There are two sets of times, because the two public implementations differ:

- `dpm_solver` follows PixArt's own sampler: time is continuous, u in (0, 1], and the network is
  evaluated at the fractional timestep T u - 1. Sampling ends at timestep 0, where sigma is 0.01.
  The times are evenly spaced, or with spacing "logSNR" evenly in lambda.
- `dpm_solver_diffusers` follows the DPMSolverMultistepScheduler of diffusers with the published
  configuration of PixArt-Sigma: timesteps are integers, and the last step goes to sigma 0.

Order 3 is the update of both implementations, in which the second difference has half the weight of
the interpolating polynomial. Its error is smaller than that of order 2, but it converges with the
same order, 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.config import unknown_name
from lit_jax.diffusion.gaussian import GaussianProcess, split_output
from lit_jax.diffusion.losses import Denoiser, NoiseFn, Progress

ORDERS = (1, 2, 3)


class ContinuousSchedule:
    """Noise schedule of a discrete process at any time u in [1/T, 1], float64.

    log alpha is linear between the knots u_i = (i + 1) / T, where it has the value of timestep i;
    alpha^2 + sigma^2 = 1.
    """

    def __init__(self, alphas_cumprod_T: np.ndarray) -> None:
        self.num_timesteps = len(alphas_cumprod_T)
        self._times_T = np.arange(1, self.num_timesteps + 1) / self.num_timesteps
        self._log_alphas_T = 0.5 * np.log(alphas_cumprod_T)

    def log_alpha(self, u: np.ndarray) -> np.ndarray:
        return np.interp(u, self._times_T, self._log_alphas_T)

    def alpha(self, u: np.ndarray) -> np.ndarray:
        return np.exp(self.log_alpha(u))

    def sigma(self, u: np.ndarray) -> np.ndarray:
        return np.sqrt(-np.expm1(2.0 * self.log_alpha(u)))

    def lambda_(self, u: np.ndarray) -> np.ndarray:
        """Return log(alpha / sigma), a decreasing function of u."""
        return self.log_alpha(u) - np.log(self.sigma(u))

    def inverse_lambda(self, lambda_: np.ndarray) -> np.ndarray:
        """Return the time u at which `lambda_` is reached."""
        log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * lambda_)
        return np.interp(log_alpha, self._log_alphas_T[::-1], self._times_T[::-1])

    def timestep(self, u: np.ndarray) -> np.ndarray:
        """Return the time input of the network: 0 at the first knot, T - 1 at the last."""
        return self.num_timesteps * u - 1.0


def time_uniform(schedule: ContinuousSchedule, num_steps: int) -> np.ndarray:
    """Return times u from 1 to 1/T, evenly spaced, [n + 1]."""
    return np.linspace(1.0, 1.0 / schedule.num_timesteps, num_steps + 1)


def log_snr(schedule: ContinuousSchedule, num_steps: int) -> np.ndarray:
    """Return times u from 1 to 1/T, evenly spaced in lambda, [n + 1]."""
    first, last = schedule.lambda_(np.array([1.0, 1.0 / schedule.num_timesteps]))
    return schedule.inverse_lambda(np.linspace(first, last, num_steps + 1))


SPACINGS: dict[str, Callable[[ContinuousSchedule, int], np.ndarray]] = {
    "time_uniform": time_uniform,
    "logSNR": log_snr,
}


@dataclass(frozen=True)
class SolverSteps:
    """Coefficients of a solver, float64: row i is the step from state i to state i + 1.

    With D_i the x_0 predicted at state i, x_{i+1} is x_weights[i] * x_i plus the sum over j of
    weights[i, j] * D_{i-j}.
    """

    times_n: np.ndarray  # timesteps at which the network is evaluated
    alphas_n: np.ndarray  # level of the signal in the state of the evaluation
    sigmas_n: np.ndarray  # level of the noise
    x_weights_n: np.ndarray
    weights_nxk: np.ndarray  # k: highest order


def official_steps(
    process: GaussianProcess, order: int = 2, spacing: str = "time_uniform"
) -> SolverSteps:
    """Return the steps of PixArt's sampler from timestep T - 1 to 0, spaced by a row of `SPACINGS`.

    The order starts at 1, rises with the number of predictions, and falls to 1 at the last step.
    Raises ValueError for an unknown order or spacing and for an unsupported process.
    """
    _check(process, order)
    if spacing not in SPACINGS:
        raise unknown_name("solver spacing", spacing, SPACINGS)
    n, schedule = process.num_steps, ContinuousSchedule(process.original_alphas_cumprod)
    u = SPACINGS[spacing](schedule, n)
    orders = [min(i + 1, order, n - i) for i in range(n)]
    return _solver_steps(schedule.timestep(u), schedule.alpha(u), schedule.sigma(u), orders)


def diffusers_steps(process: GaussianProcess, order: int = 2) -> SolverSteps:
    """Return the steps of diffusers' scheduler: integer timesteps from T - 1, then sigma 0.

    The last step has order 1; with fewer than 15 steps the one before has at most order 2.
    Raises ValueError as `official_steps`, and for so many steps that timesteps repeat.
    """
    _check(process, order)
    n, abar_T = process.num_steps, process.original_alphas_cumprod
    # Rounded half to even, as in diffusers. Sigma 0 replaces timestep 0.
    times_n = np.linspace(0, len(abar_T) - 1, n + 1).round()[:0:-1].astype(np.int64)
    if len(np.unique(times_n)) < n:
        raise ValueError(
            f"{n} steps between {len(abar_T)} timesteps round to the same timestep twice; use"
            f" {len(abar_T) - 1} at most"
        )
    abar = np.append(abar_T[times_n], 1.0)
    orders = [min(i + 1, order, 1 if i == n - 1 else order) for i in range(n)]
    if n < 15:
        orders[-2] = min(orders[-2], 2)
    return _solver_steps(np.append(times_n, 0), np.sqrt(abar), np.sqrt(1.0 - abar), orders)


def official_times(process: GaussianProcess, spacing: str = "time_uniform") -> np.ndarray:
    """Return the evaluation times of `dpm_solver`, descending, float64 [n]."""
    return official_steps(process, spacing=spacing).times_n


def diffusers_times(process: GaussianProcess) -> np.ndarray:
    """Return the evaluation times of `dpm_solver_diffusers`, descending, float64 [n]."""
    return diffusers_steps(process).times_n


def dpm_solver(
    denoiser: Denoiser,
    process: GaussianProcess,
    x_T_BxHxWxC: jax.Array,
    noise_fn: NoiseFn,
    *,
    progress: Progress | None = None,
    order: int = 2,
    spacing: str = "time_uniform",
) -> jax.Array:
    """Return x at timestep 0 by the DPM-Solver++ of PixArt from x_T, [B, H, W, C].

    There are `process.num_steps` steps with one evaluation each; the spacing of `process` must be a
    plain number of steps. noise_fn is never called. progress is as in `samplers.ddpm`.
    """
    return _solve(denoiser, process, x_T_BxHxWxC, official_steps(process, order, spacing), progress)


def dpm_solver_diffusers(
    denoiser: Denoiser,
    process: GaussianProcess,
    x_T_BxHxWxC: jax.Array,
    noise_fn: NoiseFn,
    *,
    progress: Progress | None = None,
    order: int = 2,
) -> jax.Array:
    """Return x at sigma 0 by the DPM-Solver++ of diffusers from x_T, [B, H, W, C].

    Arguments as in `dpm_solver`.
    """
    return _solve(denoiser, process, x_T_BxHxWxC, diffusers_steps(process, order), progress)


def _check(process: GaussianProcess, order: int) -> None:
    if process.spacing and not process.spacing.isdecimal():
        raise ValueError(
            f"steps {process.spacing!r} pick timesteps, but a DPM solver chooses its own: give the"
            f" number of steps, '{process.num_steps}'"
        )
    if order not in ORDERS:
        raise ValueError(f"order {order} of the DPM solver is not one of {ORDERS}")
    if process.num_steps < order:
        raise ValueError(
            f"{process.num_steps} steps are too few for a DPM solver of order {order}; give at"
            f" least {order}, or a lower order"
        )


def _solver_steps(
    times: np.ndarray, alphas: np.ndarray, sigmas: np.ndarray, orders: list[int]
) -> SolverSteps:
    """Return the tables of n steps between n + 1 states; `orders` has the order of each step."""
    with np.errstate(divide="ignore"):  # lambda is infinite at sigma 0, the last state
        lambdas = np.log(alphas) - np.log(sigmas)
    weights_nxk = np.zeros((len(orders), max(orders)))
    for i, order in enumerate(orders):
        h = lambdas[i + 1] - lambdas[i]
        gaps = np.diff(lambdas[i - order + 1 : i + 1])[::-1]  # the newest first
        weights_nxk[i, :order] = alphas[i + 1] * _unit_weights(h, gaps)
    return SolverSteps(
        times[:-1].astype(np.float64),
        alphas[:-1],
        sigmas[:-1],
        sigmas[1:] / sigmas[:-1],
        weights_nxk,
    )


def _unit_weights(h: float, gaps: np.ndarray) -> np.ndarray:
    """Return the weights of the last len(gaps) + 1 predictions, the newest first, for a step of `h`
    in lambda with alpha 1 at its end. `gaps`: distances in lambda between these predictions.

    They are the integrals over the step, e^(lambda - lambda_t) d lambda, of the value (`level`), of
    the first difference and of half the second difference, in units of h.
    """
    level = -np.expm1(-h)
    if len(gaps) == 0:
        return np.array([level])
    r0 = gaps[0] / h
    first = np.array([1.0, -1.0]) / r0  # first difference of the two newest predictions
    if len(gaps) == 1:
        # h / 2 times the level, rather than the integral of lambda, as published.
        return np.array([level, 0.0]) + 0.5 * level * first
    r1 = gaps[1] / h
    newer, older = np.append(first, 0.0), np.array([0.0, 1.0, -1.0]) / r1
    second = (newer - older) / (r0 + r1)
    slope = newer + r0 * second  # at the newest prediction
    ramp = 1.0 - level / h
    return np.array([level, 0.0, 0.0]) + ramp * slope + (0.5 - ramp / h) * second


def _solve(
    denoiser: Denoiser,
    process: GaussianProcess,
    x_T_BxHxWxC: jax.Array,
    steps: SolverSteps,
    progress: Progress | None,
) -> jax.Array:
    """Run all steps as one `scan`; the program is as large as one step."""
    kept = steps.weights_nxk.shape[1] - 1  # older predictions that a step reads

    def body(
        carry: tuple[jax.Array, tuple[jax.Array, ...]], row: dict[str, jax.Array]
    ) -> tuple[tuple[jax.Array, tuple[jax.Array, ...]], None]:
        x_BxHxWxC, older = carry
        out_BxHxWxK = denoiser(x_BxHxWxC, jnp.full(len(x_BxHxWxC), row["time"]))
        prediction_BxHxWxC, _ = split_output(process, out_BxHxWxK, x_BxHxWxC.shape[-1])
        if process.mean_type == "epsilon":
            prediction_BxHxWxC = (x_BxHxWxC - row["sigma"] * prediction_BxHxWxC) / row["alpha"]
        newest_first = (prediction_BxHxWxC, *older)
        x_BxHxWxC = row["x_weight"] * x_BxHxWxC
        for j, D_BxHxWxC in enumerate(newest_first):
            x_BxHxWxC = x_BxHxWxC + row["weights"][j] * D_BxHxWxC
        if progress is not None:
            jax.debug.callback(progress, row["remaining"])
        return (x_BxHxWxC, newest_first[:kept]), None

    rows = {
        "time": steps.times_n,
        "alpha": steps.alphas_n,
        "sigma": steps.sigmas_n,
        "x_weight": steps.x_weights_n,
        "weights": steps.weights_nxk,
    }
    xs = {name: jnp.asarray(table.astype(np.float32)) for name, table in rows.items()}
    xs["remaining"] = jnp.arange(len(steps.times_n))[::-1]
    none_yet = jnp.zeros_like(x_T_BxHxWxC)
    (x_BxHxWxC, _), _ = jax.lax.scan(body, (x_T_BxHxWxC, (none_yet,) * kept), xs)
    return x_BxHxWxC
