"""Classifier-free guidance (Ho & Salimans 2022): a wrapper that makes a denoiser of a network.

Shape letters as in `gaussian.py`. The network is any function (x [B, H, W, C], t [B], condition)
-> [B, H, W, K]; a condition is an array or a tree of arrays with leading axis B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.config import unknown_name
from lit_jax.diffusion.losses import Denoiser

Condition = Any  # an array or a PyTree of arrays
Network = Callable[[jax.Array, jax.Array, Condition], jax.Array]
Interval = tuple[float, float]

# Number of leading channels that are guided, as a function of the number of image channels C.
# "three" is the rule of the official DiT: channels 0 to 2 of the 4 latent channels are guided, the
# last one and the variance stay conditional. Published scores of DiT depend on it.
GUIDED_CHANNELS: dict[str, Callable[[int], int]] = {
    "three": lambda channels: min(3, channels),
    "all": lambda channels: channels,
}


def guided(
    model_fn: Network,
    cond: Condition,
    null_cond: Condition,
    scale: float,
    channels: str = "three",
    interval: Interval | None = None,
) -> Denoiser:
    """Return the denoiser epsilon_uncond + scale (epsilon_cond - epsilon_uncond), CFG Eq. 6 with
    scale = 1 + w.

    cond, null_cond: conditions of the images and the unconditional ones, leading axis B each.
    scale: 1 disables guidance; the network then runs once per step, on the plain batch.
    channels: row of `GUIDED_CHANNELS`; all other output channels are the conditional ones.
    interval: (t_low, t_high), original timesteps, both included. Outside of it the unconditional
        half is skipped and the output is conditional (Kynkaanniemi et al. 2024). None: no limits.
    Raises ValueError for an unknown channel policy or an empty interval.
    """
    if channels not in GUIDED_CHANNELS:
        raise unknown_name("guidance channels", channels, GUIDED_CHANNELS)
    _check_interval(interval)

    def conditional(x_BxHxWxC: jax.Array, t_B: jax.Array) -> jax.Array:
        return model_fn(x_BxHxWxC, t_B, cond)

    if scale == 1.0:
        return conditional

    def outputs(x_BxHxWxC: jax.Array, t_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (guided, conditional) output; they differ in the guided channels only."""
        out_BxHxWxK, null_BxHxWxK = _both(model_fn, x_BxHxWxC, t_B, cond, null_cond)
        count = GUIDED_CHANNELS[channels](x_BxHxWxC.shape[-1])
        null_BxHxWxG = null_BxHxWxK[..., :count]
        guided_BxHxWxG = null_BxHxWxG + scale * (out_BxHxWxK[..., :count] - null_BxHxWxG)
        return jnp.concatenate([guided_BxHxWxG, out_BxHxWxK[..., count:]], axis=-1), out_BxHxWxK

    if interval is None:
        return lambda x_BxHxWxC, t_B: outputs(x_BxHxWxC, t_B)[0]
    low, high = interval

    def within(x_BxHxWxC: jax.Array, t_B: jax.Array) -> jax.Array:
        inside_B = (t_B >= low) & (t_B <= high)

        def selected(x_BxHxWxC: jax.Array, t_B: jax.Array) -> jax.Array:
            # Samplers give all images of a step one t; other callers may mix timesteps.
            return jnp.where(inside_B[:, None, None, None], *outputs(x_BxHxWxC, t_B))

        return jax.lax.cond(jnp.any(inside_B), selected, conditional, x_BxHxWxC, t_B)

    return within


def num_function_evaluations(
    times_n: np.ndarray, scale: float = 1.0, interval: Interval | None = None
) -> int:
    """Return the network evaluations per image of a sampler that calls `guided` at these times, in
    any order.

    It is one per time, and a second one for each time at which `guided` runs the null condition.
    The times of a sampler are `SAMPLERS[name].times(process)`.
    """
    _check_interval(interval)
    if scale == 1.0:
        return len(times_n)
    if interval is None:
        return 2 * len(times_n)
    # float32, as the comparison inside the compiled sampler.
    low, high = np.asarray(interval, np.float32)
    times_n = times_n.astype(np.float32)
    return len(times_n) + int(((times_n >= low) & (times_n <= high)).sum())


def _check_interval(interval: Interval | None) -> None:
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(
            f"guidance interval {interval} is empty; write (t_low, t_high) with t_low <= t_high"
        )


def _both(
    model_fn: Network, x_BxHxWxC: jax.Array, t_B: jax.Array, cond: Condition, null_cond: Condition
) -> tuple[jax.Array, jax.Array]:
    """Return the network outputs for both conditions from one doubled batch, [B, H, W, K] each.

    The two copies of an image are neighbours in the batch, so that doubling a sharded batch moves
    no data between devices.
    """

    def pair(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

    doubled = jax.tree.map(pair, cond, null_cond)
    out_2BxHxWxK = model_fn(pair(x_BxHxWxC, x_BxHxWxC), pair(t_B, t_B), doubled)
    out_Bx2xHxWxK = out_2BxHxWxK.reshape(-1, 2, *out_2BxHxWxK.shape[1:])
    return out_Bx2xHxWxK[:, 0], out_Bx2xHxWxK[:, 1]
