"""The Gaussian diffusion process: its tables, and one small function per equation.

Shape letters: B images, H height, W width, C image channels, K channels of the network output
(C predictions, followed by C variance channels when the variance is learned), n steps kept.
Arguments named `i` are step indices of the (respaced) process, int [B]; the network always gets
the original timestep `original_timesteps(process, i)`. Tables are built in float64 numpy; a value
is cast to float32 when it is gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.config import unknown_name
from lit_jax.diffusion.schedule import (
    REFERENCE_STEPS,
    respaced_betas,
    respaced_timesteps,
    schedule_betas,
)

MEAN_TYPES = ("epsilon", "x_start")
VARIANCE_TYPES = ("learned_range", "fixed_small", "fixed_large")


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """Tables of one (respaced) process, float64 [n] each, and the meaning of the network output.

    Solvers of the probability-flow ODE choose their own times: they use the number of steps and
    `original_alphas_cumprod` only.

    Processes are compared and hashed by identity, so that one can be a static jit argument.
    mean_type: "epsilon" (the network predicts the noise) or "x_start".
    var_type: "learned_range" (iDDPM, Eq. 15), "fixed_small" (the posterior variance) or
        "fixed_large" (beta).
    """

    mean_type: str
    var_type: str
    spacing: str  # of the kept steps, in the notation of `schedule.respaced_timesteps`
    original_alphas_cumprod: np.ndarray  # abar of every original timestep, float64 [T]
    timestep_map: np.ndarray  # original timestep of every kept step, int64
    betas: np.ndarray
    alphas_cumprod: np.ndarray  # abar_t
    alphas_cumprod_prev: np.ndarray  # abar_{t-1}, 1 before the first step
    alphas_cumprod_next: np.ndarray  # abar_{t+1}, 0 after the last step
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    log_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray  # sqrt(1 / abar)
    sqrt_recipm1_alphas_cumprod: np.ndarray  # sqrt(1 / abar - 1)
    posterior_variance: np.ndarray  # beta tilde
    posterior_log_variance_clipped: np.ndarray  # its logarithm, entry 0 replaced by entry 1
    posterior_mean_coef1: np.ndarray  # weight of x_0 in the posterior mean
    posterior_mean_coef2: np.ndarray  # weight of x_t in the posterior mean

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def learns_variance(self) -> bool:
        return self.var_type == "learned_range"


def create_process(
    spacing: str = "",
    schedule: str = "linear",
    mean_type: str = "epsilon",
    var_type: str = "learned_range",
    num_timesteps: int = REFERENCE_STEPS,
) -> GaussianProcess:
    """Build the process that keeps the steps `spacing` of `schedule` over `num_timesteps`.

    The defaults are the training process of DiT. Every table is recomputed from the betas of the
    kept steps. Raises ValueError for an unknown name or an impossible spacing.
    """
    if mean_type not in MEAN_TYPES:
        raise unknown_name("mean_type", mean_type, MEAN_TYPES)
    if var_type not in VARIANCE_TYPES:
        raise unknown_name("var_type", var_type, VARIANCE_TYPES)
    kept = respaced_timesteps(num_timesteps, spacing)
    original_betas = schedule_betas(schedule, num_timesteps)
    betas = respaced_betas(original_betas, kept)
    alphas_cumprod = np.cumprod(1.0 - betas)
    prev = np.append(1.0, alphas_cumprod[:-1])
    posterior_variance = betas * (1.0 - prev) / (1.0 - alphas_cumprod)
    # The posterior variance of the first step is 0: its logarithm becomes that of the second.
    clipped = np.append(posterior_variance[1], posterior_variance[1:])
    return GaussianProcess(
        mean_type=mean_type,
        var_type=var_type,
        spacing=spacing.strip(),
        original_alphas_cumprod=np.cumprod(1.0 - original_betas),
        timestep_map=kept,
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=prev,
        alphas_cumprod_next=np.append(alphas_cumprod[1:], 0.0),
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1.0 - alphas_cumprod),
        log_one_minus_alphas_cumprod=np.log(1.0 - alphas_cumprod),
        sqrt_recip_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod - 1.0),
        posterior_variance=posterior_variance,
        posterior_log_variance_clipped=np.log(clipped),
        posterior_mean_coef1=betas * np.sqrt(prev) / (1.0 - alphas_cumprod),
        posterior_mean_coef2=(1.0 - prev) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
    )


class Gaussian(NamedTuple):
    """A diagonal Gaussian; arrays of shape [B, H, W, C] or broadcastable to it."""

    mean_BxHxWxC: jax.Array
    variance: jax.Array
    log_variance: jax.Array


class ReverseStep(NamedTuple):
    """The model's p(x_{t-1} | x_t), and the x_0 it was computed from."""

    mean_BxHxWxC: jax.Array
    variance: jax.Array
    log_variance: jax.Array
    x_start_BxHxWxC: jax.Array


def gather(table: np.ndarray, i_B: jax.Array) -> jax.Array:
    """Return the entries i of a float64 table as float32 [B, 1, 1, 1], which broadcasts over
    images."""
    return jnp.asarray(table.astype(np.float32))[i_B][:, None, None, None]


def original_timesteps(process: GaussianProcess, i_B: jax.Array) -> jax.Array:
    """Return the timesteps of the original process for step indices `i`, int32 [B]: the time input
    of the network."""
    return jnp.asarray(process.timestep_map.astype(np.int32))[i_B]


def q_mean_variance(
    process: GaussianProcess, x_start_BxHxWxC: jax.Array, i_B: jax.Array
) -> Gaussian:
    """Return q(x_t | x_0) = N(sqrt(abar) x_0, (1 - abar) I), DDPM Eq. 4."""
    return Gaussian(
        gather(process.sqrt_alphas_cumprod, i_B) * x_start_BxHxWxC,
        gather(1.0 - process.alphas_cumprod, i_B),
        gather(process.log_one_minus_alphas_cumprod, i_B),
    )


def q_sample(
    process: GaussianProcess, x_start_BxHxWxC: jax.Array, i_B: jax.Array, noise_BxHxWxC: jax.Array
) -> jax.Array:
    """Return x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise, DDPM Eq. 4 reparametrised, [B, H, W,
    C]."""
    return (
        gather(process.sqrt_alphas_cumprod, i_B) * x_start_BxHxWxC
        + gather(process.sqrt_one_minus_alphas_cumprod, i_B) * noise_BxHxWxC
    )


def q_posterior(
    process: GaussianProcess, x_start_BxHxWxC: jax.Array, x_t_BxHxWxC: jax.Array, i_B: jax.Array
) -> Gaussian:
    """Return q(x_{t-1} | x_t, x_0), DDPM Eq. 6-7; the log variance is clipped at the first step."""
    return Gaussian(
        gather(process.posterior_mean_coef1, i_B) * x_start_BxHxWxC
        + gather(process.posterior_mean_coef2, i_B) * x_t_BxHxWxC,
        gather(process.posterior_variance, i_B),
        gather(process.posterior_log_variance_clipped, i_B),
    )


def split_output(
    process: GaussianProcess, model_out_BxHxWxK: jax.Array, channels: int
) -> tuple[jax.Array, jax.Array | None]:
    """Return the network output as (prediction [B, H, W, C], variance channels [B, H, W, C] or
    None)."""
    expected = 2 * channels if process.learns_variance else channels
    if model_out_BxHxWxK.shape[-1] != expected:
        raise ValueError(
            f"the network returned {model_out_BxHxWxK.shape[-1]} channels for images of {channels};"
            f" variance type {process.var_type!r} needs {expected}; build the process and the"
            " network with the same learn_sigma"
        )
    if not process.learns_variance:
        return model_out_BxHxWxK, None
    return model_out_BxHxWxK[..., :channels], model_out_BxHxWxK[..., channels:]


def learned_range_log_variance(
    process: GaussianProcess, v_BxHxWxC: jax.Array, i_B: jax.Array
) -> jax.Array:
    """Return log Sigma = f log beta + (1 - f) log beta~ with f = (v + 1) / 2, iDDPM Eq. 15.

    v is not clamped: Sigma may lie outside the range between the two bounds.
    """
    lower = gather(process.posterior_log_variance_clipped, i_B)
    upper = gather(np.log(process.betas), i_B)
    fraction_BxHxWxC = (v_BxHxWxC + 1.0) / 2.0
    return fraction_BxHxWxC * upper + (1.0 - fraction_BxHxWxC) * lower


def fixed_variance(process: GaussianProcess, i_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (variance, log variance) [B, 1, 1, 1] of a process with fixed variance, DDPM section
    3.2.

    "fixed_large" is beta, except for the first step, which has the posterior variance of the
    second: beta would lower the likelihood of the data. "fixed_small" is beta tilde.
    """
    if process.var_type == "fixed_large":
        variance = np.append(process.posterior_variance[1], process.betas[1:])
        return gather(variance, i_B), gather(np.log(variance), i_B)
    return (
        gather(process.posterior_variance, i_B),
        gather(process.posterior_log_variance_clipped, i_B),
    )


def x_start_from_epsilon(
    process: GaussianProcess, x_t_BxHxWxC: jax.Array, epsilon_BxHxWxC: jax.Array, i_B: jax.Array
) -> jax.Array:
    """Return x_0 = sqrt(1 / abar) x_t - sqrt(1 / abar - 1) epsilon: DDPM Eq. 4 solved for x_0."""
    return (
        gather(process.sqrt_recip_alphas_cumprod, i_B) * x_t_BxHxWxC
        - gather(process.sqrt_recipm1_alphas_cumprod, i_B) * epsilon_BxHxWxC
    )


def epsilon_from_x_start(
    process: GaussianProcess, x_t_BxHxWxC: jax.Array, x_start_BxHxWxC: jax.Array, i_B: jax.Array
) -> jax.Array:
    """Return epsilon = (sqrt(1 / abar) x_t - x_0) / sqrt(1 / abar - 1): the inverse of
    `x_start_from_epsilon`."""
    return (
        gather(process.sqrt_recip_alphas_cumprod, i_B) * x_t_BxHxWxC - x_start_BxHxWxC
    ) / gather(process.sqrt_recipm1_alphas_cumprod, i_B)


def predict_x_start(
    process: GaussianProcess,
    prediction_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    clip_denoised: bool = False,
) -> jax.Array:
    """Return the x_0 implied by a prediction of either mean type, clamped to [-1, 1] with
    `clip_denoised`."""
    x_start_BxHxWxC = prediction_BxHxWxC
    if process.mean_type == "epsilon":
        x_start_BxHxWxC = x_start_from_epsilon(process, x_t_BxHxWxC, prediction_BxHxWxC, i_B)
    return jnp.clip(x_start_BxHxWxC, -1.0, 1.0) if clip_denoised else x_start_BxHxWxC


def p_mean_variance(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    clip_denoised: bool = False,
) -> ReverseStep:
    """Return p(x_{t-1} | x_t): the posterior of DDPM Eq. 7 at the predicted x_0, with the Sigma of
    the variance type."""
    prediction_BxHxWxC, v_BxHxWxC = split_output(process, model_out_BxHxWxK, x_t_BxHxWxC.shape[-1])
    if v_BxHxWxC is None:
        variance, log_variance = fixed_variance(process, i_B)
    else:
        log_variance = learned_range_log_variance(process, v_BxHxWxC, i_B)
        variance = jnp.exp(log_variance)
    x_start_BxHxWxC = predict_x_start(process, prediction_BxHxWxC, x_t_BxHxWxC, i_B, clip_denoised)
    mean_BxHxWxC = q_posterior(process, x_start_BxHxWxC, x_t_BxHxWxC, i_B).mean_BxHxWxC
    return ReverseStep(mean_BxHxWxC, variance, log_variance, x_start_BxHxWxC)
