"""The diffusion process: schedule, equations, losses, samplers and guidance. Knows no network."""

from __future__ import annotations

from lit_jax.diffusion.gaussian import (
    GaussianProcess,
    create_process,
    original_timesteps,
    p_mean_variance,
    q_posterior,
    q_sample,
)
from lit_jax.diffusion.guidance import GUIDED_CHANNELS, guided, num_function_evaluations
from lit_jax.diffusion.losses import LOSSES, bits_per_dimension, training_losses
from lit_jax.diffusion.samplers import SAMPLERS, Sampler, image_keys, per_image_noise
from lit_jax.diffusion.schedule import SCHEDULES, respaced_timesteps

__all__ = [
    "GUIDED_CHANNELS",
    "LOSSES",
    "SAMPLERS",
    "SCHEDULES",
    "GaussianProcess",
    "Sampler",
    "bits_per_dimension",
    "create_process",
    "guided",
    "image_keys",
    "num_function_evaluations",
    "original_timesteps",
    "p_mean_variance",
    "per_image_noise",
    "q_posterior",
    "q_sample",
    "respaced_timesteps",
    "training_losses",
]
