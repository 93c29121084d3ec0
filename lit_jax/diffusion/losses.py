"""Losses of a diffusion process: simple, variational and hybrid, and bits per dimension.

Shape letters as in `gaussian.py`. Every loss is per image, float32 [B]; the caller averages
over the batch. Bits are base-2 and per dimension (pixel and channel).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lit_jax.config import unknown_name
from lit_jax.diffusion.gaussian import (
    GaussianProcess,
    epsilon_from_x_start,
    original_timesteps,
    p_mean_variance,
    predict_x_start,
    q_mean_variance,
    q_posterior,
    q_sample,
    split_output,
)
from lit_jax.diffusion.likelihood import discretised_log_likelihood, gaussian_kl
from lit_jax.diffusion.schedule import REFERENCE_STEPS

Losses = dict[str, jax.Array]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
NoiseFn = Callable[[jax.Array], jax.Array]
Progress = Callable[[int], None]

# Last step index at which the `snr_mse` loss compares x_0; at later steps it compares the noise.
LAST_X_START_STEP = 249


class VariationalTerm(NamedTuple):
    """One term of the variational bound in bits per dimension, and the predicted x_0."""

    bits_B: jax.Array
    x_start_BxHxWxC: jax.Array


def image_mean(values_BxHxWxC: jax.Array) -> jax.Array:
    """Return the mean over all axes except the batch, [B]."""
    return jnp.mean(values_BxHxWxC, axis=tuple(range(1, values_BxHxWxC.ndim)))


def variational_term(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    clip_denoised: bool = False,
) -> VariationalTerm:
    """Return the term of the bound for step i, DDPM Eq. 5, in bits per dimension.

    It is KL(q(x_{t-1} | x_t, x_0) || p) for i > 0, and the discretised negative log-likelihood for
    i = 0.
    """
    true = q_posterior(process, x_start_BxHxWxC, x_t_BxHxWxC, i_B)
    model = p_mean_variance(process, model_out_BxHxWxK, x_t_BxHxWxC, i_B, clip_denoised)
    kl_B = image_mean(
        gaussian_kl(true.mean_BxHxWxC, true.log_variance, model.mean_BxHxWxC, model.log_variance)
    )
    nll_B = -image_mean(
        discretised_log_likelihood(x_start_BxHxWxC, model.mean_BxHxWxC, 0.5 * model.log_variance)
    )
    bits_B = jnp.where(i_B == 0, nll_B, kl_B) / math.log(2.0)
    return VariationalTerm(bits_B, model.x_start_BxHxWxC)


def simple_term(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> jax.Array:
    """Return L_simple, DDPM Eq. 14: mean squared error of the predicted noise or x_0, [B]."""
    channels = x_start_BxHxWxC.shape[-1]
    prediction_BxHxWxC, _ = split_output(process, model_out_BxHxWxK, channels)
    target_BxHxWxC = noise_BxHxWxC if process.mean_type == "epsilon" else x_start_BxHxWxC
    return image_mean(jnp.square(target_BxHxWxC - prediction_BxHxWxC))


def switched_term(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> jax.Array:
    """Return L_simple with the target of PixArt's option `snr`: mean squared error of x_0 up to
    step 249, of the noise after it, [B].

    The prediction of either mean type is converted to the target of the step. An error in epsilon
    has the weight (1 - abar) / abar in x_0, so that early steps have a smaller weight. Steps are
    step indices of the process, even if it is respaced.
    """
    prediction_BxHxWxC, _ = split_output(process, model_out_BxHxWxK, x_start_BxHxWxC.shape[-1])
    x_0_BxHxWxC = predict_x_start(process, prediction_BxHxWxC, x_t_BxHxWxC, i_B)
    epsilon_BxHxWxC = prediction_BxHxWxC
    if process.mean_type == "x_start":
        epsilon_BxHxWxC = epsilon_from_x_start(process, x_t_BxHxWxC, prediction_BxHxWxC, i_B)
    error_BxHxWxC = jnp.where(
        (i_B <= LAST_X_START_STEP)[:, None, None, None],
        x_start_BxHxWxC - x_0_BxHxWxC,
        noise_BxHxWxC - epsilon_BxHxWxC,
    )
    return image_mean(jnp.square(error_BxHxWxC))


def variance_term(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
) -> jax.Array:
    """Return L_vlb as in iDDPM Eq. 16, bits [B]: its gradient reaches Sigma only, because the mean
    is held constant."""
    prediction_BxHxWxC, v_BxHxWxC = split_output(
        process, model_out_BxHxWxK, x_start_BxHxWxC.shape[-1]
    )
    assert v_BxHxWxC is not None  # callers check `process.learns_variance`
    constant_BxHxWxC = jax.lax.stop_gradient(prediction_BxHxWxC)
    frozen_BxHxWxK = jnp.concatenate([constant_BxHxWxC, v_BxHxWxC], axis=-1)
    return variational_term(process, frozen_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B).bits_B


def mse_loss(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
    vb_weight: float = 1.0,
) -> Losses:
    """Return L_simple, plus `vb_weight` times the variance term if the variance is learned. DiT
    uses weight 1."""
    mse_B = simple_term(process, model_out_BxHxWxK, x_start_BxHxWxC, noise_BxHxWxC)
    if not process.learns_variance:
        return {"loss": mse_B, "mse": mse_B}
    vb_B = vb_weight * variance_term(process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B)
    return {"loss": mse_B + vb_B, "mse": mse_B, "vb": vb_B}


def snr_mse_loss(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> Losses:
    """Return `mse_loss` with `switched_term` in place of `simple_term`: PixArt's option `snr`."""
    arguments = (process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, noise_BxHxWxC)
    losses = mse_loss(*arguments) | {"mse": switched_term(*arguments)}
    return losses | {"loss": losses["mse"] + losses.get("vb", 0.0)}


def rescaled_mse_loss(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> Losses:
    """Return `mse_loss` with the variance term times n / 1000: iDDPM Eq. 16, where lambda = 0.001
    multiplies the sum over n steps."""
    weight = process.num_steps / REFERENCE_STEPS
    return mse_loss(
        process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, noise_BxHxWxC, weight
    )


def kl_loss(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> Losses:
    """Return L_vlb of iDDPM, section 3.1: one term of the bound, with gradients of both mean and
    variance."""
    del noise_BxHxWxC  # x_t contains it; all rows of `LOSSES` have one signature
    return {
        "loss": variational_term(
            process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B
        ).bits_B
    }


def rescaled_kl_loss(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> Losses:
    """Return `kl_loss` times n: for uniform i an unbiased estimate of the sum of all terms."""
    losses = kl_loss(process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, noise_BxHxWxC)
    return {"loss": process.num_steps * losses["loss"]}


LOSSES: dict[str, Callable[..., Losses]] = {
    "mse": mse_loss,
    "rescaled_mse": rescaled_mse_loss,
    "snr_mse": snr_mse_loss,
    "kl": kl_loss,
    "rescaled_kl": rescaled_kl_loss,
}


def training_losses(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
    loss_type: str = "mse",
) -> Losses:
    """Return the losses of a row of `LOSSES`, [B] each: "loss", and its terms "mse" and "vb" if it
    has them.

    x_t must be `q_sample(process, x_start, i, noise)`, and model_out the network output for it.
    Raises ValueError for an unknown loss_type.
    """
    if loss_type not in LOSSES:
        raise unknown_name("loss type", loss_type, LOSSES)
    return LOSSES[loss_type](
        process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, noise_BxHxWxC
    )


def prior_bits(process: GaussianProcess, x_start_BxHxWxC: jax.Array) -> jax.Array:
    """Return KL(q(x_T | x_0) || N(0, I)) in bits per dimension, L_T of DDPM Eq. 5, [B]."""
    last_B = jnp.full(x_start_BxHxWxC.shape[0], process.num_steps - 1)
    q = q_mean_variance(process, x_start_BxHxWxC, last_B)
    zero = jnp.zeros(())
    return image_mean(gaussian_kl(q.mean_BxHxWxC, q.log_variance, zero, zero)) / math.log(2.0)


def bits_per_dimension(
    denoiser: Denoiser,
    process: GaussianProcess,
    x_start_BxHxWxC: jax.Array,
    noise_fn: NoiseFn,
    *,
    clip_denoised: bool = True,
) -> Losses:
    """Return the variational bound, DDPM Eq. 5, with one noise sample per step, in a compiled loop.

    noise_fn(i) -> [B, H, W, C] for every step index i of the process.
    Entries of the result: "total_bpd" and "prior_bpd" [B]; per step, ordered by step index, "vb"
    (bits), "x_start_mse" and "mse" (of the noise) [B, n].
    """
    batch = x_start_BxHxWxC.shape[0]

    def step(_: None, i: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        i_B = jnp.full(batch, i)
        noise_BxHxWxC = noise_fn(i)
        x_t_BxHxWxC = q_sample(process, x_start_BxHxWxC, i_B, noise_BxHxWxC)
        model_out_BxHxWxK = denoiser(x_t_BxHxWxC, original_timesteps(process, i_B))
        term = variational_term(
            process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, clip_denoised
        )
        epsilon_BxHxWxC = epsilon_from_x_start(process, x_t_BxHxWxC, term.x_start_BxHxWxC, i_B)
        return None, (
            term.bits_B,
            image_mean(jnp.square(term.x_start_BxHxWxC - x_start_BxHxWxC)),
            image_mean(jnp.square(epsilon_BxHxWxC - noise_BxHxWxC)),
        )

    _, (vb_nxB, x_start_mse_nxB, mse_nxB) = jax.lax.scan(step, None, jnp.arange(process.num_steps))
    prior_B = prior_bits(process, x_start_BxHxWxC)
    return {
        "total_bpd": vb_nxB.sum(0) + prior_B,
        "prior_bpd": prior_B,
        "vb": vb_nxB.T,
        "x_start_mse": x_start_mse_nxB.T,
        "mse": mse_nxB.T,
    }
