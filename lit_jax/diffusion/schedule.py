"""Noise schedules, and respacing: the selection of original timesteps that a process keeps.

All tables are float64 numpy; they are computed once, before anything compiles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lit_jax.config import unknown_name

# Number of steps for which Ho et al. chose the end points of the linear schedule. Schedules of
# other lengths, and the weight of the variational term in the rescaled losses, are relative to it.
REFERENCE_STEPS = 1000


def linear_betas(num_steps: int = REFERENCE_STEPS) -> np.ndarray:
    """Return betas that rise linearly from 1e-4 to 0.02 (DDPM, Ho et al. 2020, section 4), float64
    [T].

    For T other than 1000 both ends are multiplied by 1000 / T, which keeps the total noise.
    """
    scale = REFERENCE_STEPS / num_steps
    return np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int = REFERENCE_STEPS) -> np.ndarray:
    """Return betas of the squared-cosine schedule (iDDPM, Nichol & Dhariwal 2021, Eq. 17), float64
    [T].

    The signal level is f(u) = cos^2((u + 0.008) / 1.008 * pi / 2) over u in [0, 1], and beta is
    one minus the ratio of neighbouring levels, capped at 0.999 to avoid a singular last step.
    """
    u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - level[1:] / level[:-1], 0.999)


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    "linear": linear_betas,
    "squaredcos_cap_v2": cosine_betas,
}


def schedule_betas(name: str, num_steps: int = REFERENCE_STEPS) -> np.ndarray:
    """Return betas of the named row of `SCHEDULES`, float64 [T], checked to lie in (0, 1)."""
    if name not in SCHEDULES:
        raise unknown_name("noise schedule", name, SCHEDULES)
    betas = SCHEDULES[name](num_steps)
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"schedule {name!r} with {num_steps} steps has betas up to {betas.max():.3g}, but"
            " betas must lie between 0 and 1; use more steps"
        )
    return betas


def respaced_timesteps(num_steps: int, spacing: str = "") -> np.ndarray:
    """Return original timesteps kept by `spacing`, ascending, int64 [n].

    num_steps: length T of the original process.
    spacing: "" keeps all; "250" keeps 250 spread evenly from 0 to T - 1; "10,15,20" cuts the
        process into three equal sections and keeps 10, 15 and 20 of them; "ddim50" keeps every
        s-th step for the integer s that gives exactly 50 (the spacing of DDIM, Song et al. 2021).
    Raises ValueError for an invalid spacing and for one with more steps than the process has.
    """
    text = spacing.strip()
    if not text:
        return np.arange(num_steps, dtype=np.int64)
    if text.startswith("ddim"):
        kept = _integer_stride(num_steps, _count(text.removeprefix("ddim"), spacing), spacing)
    else:
        kept = _sections(num_steps, [_count(part, spacing) for part in text.split(",")], spacing)
    if len(kept) < 2:
        raise ValueError(
            f"timestep spacing {spacing!r} keeps {len(kept)} step; a process needs at least 2,"
            " for its posterior; use more steps"
        )
    return np.array(kept, dtype=np.int64)


def respaced_betas(betas: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return betas of the process that visits only the timesteps `kept` (iDDPM, section 4), float64
    [n].

    beta'_i = 1 - abar_{kept_i} / abar_{kept_(i-1)}, with abar before the first step equal to 1.
    """
    alphas_cumprod = np.cumprod(1.0 - betas)[kept]
    return 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def _count(text: str, spacing: str) -> int:
    """Return a positive number of steps from one part of a spacing."""
    if not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(
            f"timestep spacing {spacing!r} is not understood at {text!r}; write a number of steps"
            " ('250'), numbers per section ('10,15,20'), 'ddim50', or '' for every step"
        )
    return int(text)


def _integer_stride(num_steps: int, count: int, spacing: str) -> list[int]:
    """Return every s-th step, for the smallest integer s that leaves exactly `count` steps."""
    for stride in range(1, num_steps):
        kept = range(0, num_steps, stride)
        if len(kept) == count:
            return list(kept)
    raise ValueError(
        f"timestep spacing {spacing!r}: no integer stride leaves exactly {count} of {num_steps}"
        f" steps; '{min(count, num_steps)}' (without 'ddim') spreads them evenly"
    )


def _sections(num_steps: int, counts: list[int], spacing: str) -> list[int]:
    """Return `counts[s]` steps of section s, for all of len(counts) nearly equal sections.

    The float stride is accumulated and each position is rounded half to even, as in the official
    code: i * stride, or rounding half up, would give other steps.
    """
    quotient, remainder = divmod(num_steps, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = quotient + (section < remainder)
        if count > size:
            raise ValueError(
                f"timestep spacing {spacing!r} asks for {count} steps of a section of {size}"
                f" (section {section + 1} of {len(counts)}, {num_steps} steps in all)"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return kept
