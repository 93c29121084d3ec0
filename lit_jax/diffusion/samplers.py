"""Samplers: functions of one signature that call a denoiser, each one compiled loop.

Shape letters as in `gaussian.py`. A denoiser maps (x [B, H, W, C], original timesteps [B]) to the
network output [B, H, W, K]; `guidance.guided` returns one as well. Timesteps are int for
DDPM and DDIM, float32 and fractional for the ODE solvers of `dpm_solver.py`. Noise comes from
`noise_fn(i)`, a function of the step index only: the loops carry no random state, and image b is
the same in any batch and on any number of devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.diffusion import dpm_solver
from lit_jax.diffusion.gaussian import (
    GaussianProcess,
    epsilon_from_x_start,
    gather,
    original_timesteps,
    p_mean_variance,
)
from lit_jax.diffusion.losses import Denoiser, NoiseFn, Progress

# (network output, x_t, step indices, noise) -> x_{t-1}
Step = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def image_keys(job_key: jax.Array, image_index_B: jax.Array) -> jax.Array:
    """Return one key per image, [B], a function of the job's key and the image's global index."""
    return jax.vmap(lambda index: jax.random.fold_in(job_key, index))(image_index_B)


def per_image_noise(keys_B: jax.Array, shape: tuple[int, int, int]) -> tuple[jax.Array, NoiseFn]:
    """Return (x_T [B, H, W, C], noise_fn) from one key per image; shape is (H, W, C).

    x_T of image b is normal(fold_in(keys[b], 0)), its noise at step i is
    normal(fold_in(keys[b], i + 1)): neither depends on the batch around it.
    """

    def draw(number: jax.Array | int) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key, number), shape)

        return jax.vmap(one)(keys_B)

    return draw(0), lambda i: draw(i + 1)


def p_sample(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
    clip_denoised: bool = False,
) -> jax.Array:
    """Return x_{t-1} = mean + sqrt(Sigma) noise, without noise at i = 0 (DDPM, Algorithm 2)."""
    model = p_mean_variance(process, model_out_BxHxWxK, x_t_BxHxWxC, i_B, clip_denoised)
    deviation = jnp.exp(0.5 * model.log_variance)
    return model.mean_BxHxWxC + _unless_first(i_B) * deviation * noise_BxHxWxC


def ddim_sample(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
    clip_denoised: bool = False,
    eta: float = 0.0,
) -> jax.Array:
    """Return x_{t-1} by DDIM Eq. 12 (Song et al. 2021) with sigma of Eq. 16; eta 0 is
    deterministic.

    The noise is recomputed from x_0, so that clipping x_0 also changes the direction.
    """
    x_start_BxHxWxC = p_mean_variance(
        process, model_out_BxHxWxK, x_t_BxHxWxC, i_B, clip_denoised
    ).x_start_BxHxWxC
    epsilon_BxHxWxC = epsilon_from_x_start(process, x_t_BxHxWxC, x_start_BxHxWxC, i_B)
    sigma = ddim_sigmas(process, eta)
    direction = np.sqrt(np.maximum(1.0 - process.alphas_cumprod_prev - sigma**2, 0.0))
    return (
        gather(np.sqrt(process.alphas_cumprod_prev), i_B) * x_start_BxHxWxC
        + gather(direction, i_B) * epsilon_BxHxWxC
        + _unless_first(i_B) * gather(sigma, i_B) * noise_BxHxWxC
    )


def ddim_reverse(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    clip_denoised: bool = False,
) -> jax.Array:
    """Return x_{t+1} by the deterministic DDIM ODE towards noise (DDIM, section 4.3)."""
    x_start_BxHxWxC = p_mean_variance(
        process, model_out_BxHxWxK, x_t_BxHxWxC, i_B, clip_denoised
    ).x_start_BxHxWxC
    epsilon_BxHxWxC = epsilon_from_x_start(process, x_t_BxHxWxC, x_start_BxHxWxC, i_B)
    return (
        gather(np.sqrt(process.alphas_cumprod_next), i_B) * x_start_BxHxWxC
        + gather(np.sqrt(1.0 - process.alphas_cumprod_next), i_B) * epsilon_BxHxWxC
    )


def ddim_sigmas(process: GaussianProcess, eta: float) -> np.ndarray:
    """Return the noise level of every DDIM step, Eq. 16, float64 [n]; 1 is the DDPM posterior."""
    now, prev = process.alphas_cumprod, process.alphas_cumprod_prev
    return eta * np.sqrt((1.0 - prev) / (1.0 - now)) * np.sqrt(1.0 - now / prev)


def ddpm(
    denoiser: Denoiser,
    process: GaussianProcess,
    x_T_BxHxWxC: jax.Array,
    noise_fn: NoiseFn,
    *,
    clip_denoised: bool = False,
    progress: Progress | None = None,
) -> jax.Array:
    """Return x_0 by ancestral sampling from x_T (DDPM, Algorithm 2), [B, H, W, C].

    noise_fn(i) -> [B, H, W, C] for step index i, which runs from n - 1 down to 0.
    progress(i), if given, is called on the host after every step, possibly out of order.
    """

    def step(out: jax.Array, x: jax.Array, i_B: jax.Array, noise: jax.Array) -> jax.Array:
        return p_sample(process, out, x, i_B, noise, clip_denoised)

    return _loop(step, denoiser, process, x_T_BxHxWxC, noise_fn, progress)


def ddim(
    denoiser: Denoiser,
    process: GaussianProcess,
    x_T_BxHxWxC: jax.Array,
    noise_fn: NoiseFn,
    *,
    clip_denoised: bool = False,
    progress: Progress | None = None,
    eta: float = 0.0,
) -> jax.Array:
    """Return x_0 by DDIM from x_T (Song et al. 2021), [B, H, W, C].

    Arguments as in `ddpm`; eta scales the noise between 0 (the ODE, without calls of noise_fn) and
    1 (the DDPM posterior).
    """
    if eta < 0:
        raise ValueError(f"eta is {eta}; it must be 0 (deterministic) or positive (1 is DDPM)")

    def step(out: jax.Array, x: jax.Array, i_B: jax.Array, noise: jax.Array) -> jax.Array:
        return ddim_sample(process, out, x, i_B, noise, clip_denoised, eta)

    zeros = jnp.zeros_like(x_T_BxHxWxC)
    source = noise_fn if eta > 0 else lambda i: zeros
    return _loop(step, denoiser, process, x_T_BxHxWxC, source, progress)


@dataclass(frozen=True)
class Sampler:
    """A row of `SAMPLERS`: `sampler(denoiser, process, x_T, noise_fn, *, progress=None)`.

    run: the function itself. times: process -> original times of the n calls of the denoiser,
    float64 or int64 [n]; it raises ValueError for a process that the sampler does not support.
    """

    run: Callable[..., jax.Array]
    times: Callable[[GaussianProcess], np.ndarray]

    def __call__(
        self,
        denoiser: Denoiser,
        process: GaussianProcess,
        x_T_BxHxWxC: jax.Array,
        noise_fn: NoiseFn,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> jax.Array:
        return self.run(denoiser, process, x_T_BxHxWxC, noise_fn, progress=progress, **options)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, lambda process: process.timestep_map),
    "ddim": Sampler(ddim, lambda process: process.timestep_map),
    "dpm_solver": Sampler(dpm_solver.dpm_solver, dpm_solver.official_times),
    "dpm_solver_logsnr": Sampler(
        functools.partial(dpm_solver.dpm_solver, spacing="logSNR"),
        functools.partial(dpm_solver.official_times, spacing="logSNR"),
    ),
    "dpm_solver_diffusers": Sampler(dpm_solver.dpm_solver_diffusers, dpm_solver.diffusers_times),
}


def _unless_first(i_B: jax.Array) -> jax.Array:
    """Return 1 for every step that adds noise, 0 for i = 0; float32 [B, 1, 1, 1]."""
    return (i_B != 0).astype(jnp.float32)[:, None, None, None]


def _loop(
    step: Step,
    denoiser: Denoiser,
    process: GaussianProcess,
    x_T_BxHxWxC: jax.Array,
    noise_fn: NoiseFn,
    progress: Progress | None,
) -> jax.Array:
    """Run `step` for i = n - 1 .. 0 as one `fori_loop`; the program is as large as one step."""
    last = process.num_steps - 1

    def body(k: jax.Array, x_t_BxHxWxC: jax.Array) -> jax.Array:
        i = last - k
        i_B = jnp.full(x_t_BxHxWxC.shape[0], i)
        model_out_BxHxWxK = denoiser(x_t_BxHxWxC, original_timesteps(process, i_B))
        x_BxHxWxC = step(model_out_BxHxWxK, x_t_BxHxWxC, i_B, noise_fn(i))
        if progress is not None:
            jax.debug.callback(progress, i)
        return x_BxHxWxC

    return jax.lax.fori_loop(0, process.num_steps, body, x_T_BxHxWxC)
