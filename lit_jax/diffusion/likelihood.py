"""Gaussian densities of the variational bound: KL divergence, and likelihood of grey levels.

Shape letters as in `gaussian.py`. All functions are elementwise, in nats.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Half the width of one of the 256 grey levels of data scaled to [-1, 1].
HALF_BIN = 1.0 / 255.0
SMALLEST_PROBABILITY = 1e-12


def gaussian_kl(
    mean1: jax.Array, log_variance1: jax.Array, mean2: jax.Array, log_variance2: jax.Array
) -> jax.Array:
    """Return KL(N(mean1, var1) || N(mean2, var2)) in nats, elementwise over broadcast arguments."""
    return 0.5 * (
        -1.0
        + log_variance2
        - log_variance1
        + jnp.exp(log_variance1 - log_variance2)
        + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    )


@jax.custom_jvp
def saturating_tanh(u: jax.Array) -> jax.Array:
    """Return tanh, correct to the last bit near 1, elementwise float32.

    The tails of the likelihood are log(1 - tanh), where one unit in the last place of tanh is a
    factor of two. The tanh of XLA reaches 1 too early (at |u| = 8.0, not 9.0). The derivative is
    computed from the rounded value, so that the slope of log(1 - tanh) stays 2.
    """
    decay = jnp.exp(-2.0 * jnp.abs(u))
    return jnp.where(
        jnp.abs(u) < 1.0, jnp.tanh(u), jnp.sign(u) * (1.0 - 2.0 * decay / (1.0 + decay))
    )


saturating_tanh.defjvps(lambda tangent, tanh_u, u: tangent * (1.0 - tanh_u) * (1.0 + tanh_u))


def normal_cdf(z: jax.Array) -> jax.Array:
    """Return the standard normal distribution function, in the tanh approximation of iDDPM."""
    return 0.5 * (1.0 + saturating_tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


def discretised_log_likelihood(
    x_BxHxWxC: jax.Array, mean_BxHxWxC: jax.Array, log_scale: jax.Array
) -> jax.Array:
    """Return the log probability of the grey level of x under a Gaussian, DDPM Eq. 13, in nats,
    elementwise.

    log_scale: logarithm of the standard deviation. The bins at -1 and 1 extend to infinity.
    """
    centred_BxHxWxC = x_BxHxWxC - mean_BxHxWxC
    inverse = jnp.exp(-log_scale)
    cdf_upper = normal_cdf(inverse * (centred_BxHxWxC + HALF_BIN))
    cdf_lower = normal_cdf(inverse * (centred_BxHxWxC - HALF_BIN))
    probability = jnp.where(
        x_BxHxWxC < -0.999,
        cdf_upper,
        jnp.where(x_BxHxWxC > 0.999, 1.0 - cdf_lower, cdf_upper - cdf_lower),
    )
    return jnp.log(jnp.maximum(probability, SMALLEST_PROBABILITY))
