"""Sampling protocol: the settings that define a set of images besides the model."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.settings import setting


@dataclass(frozen=True)
class Protocol:
    """Sampler, steps, guidance and seed, for labels and captions."""

    sampler: str = setting(
        "ddpm",
        group="sampling",
        help="ddpm, ddim, dpm_solver, dpm_solver_diffusers or dpm_solver_logsnr",
    )
    steps: str = setting(
        "250",
        group="sampling",
        help="sampler steps: 250; for ddpm and ddim also ddim50 or 10,15,20",
    )
    cfg_scale: float = setting(
        1.0,
        group="sampling",
        aliases=("guidance",),
        help="scale of classifier-free guidance; 1 is no guidance",
    )
    cfg_channels: str = setting(
        "three", group="sampling", help="guided channels: three (official DiT) or all"
    )
    cfg_interval: tuple[float, float] | None = setting(
        None, group="sampling", help="LOW,HIGH: guide only at timesteps in between"
    )
    seed: int = setting(0, group="sampling", help="seed; image i depends on the seed and on i only")


LABELS = Protocol()
"""The protocol of the published DiT numbers, without guidance."""

CAPTIONS = Protocol(sampler="dpm_solver", steps="20", cfg_scale=4.5, cfg_channels="all")
"""The protocol of PixArt."""
