"""From parameters and captions to latents: the compiled text-to-image sampler.

Image k of a prompt depends on the seed, the text of the prompt and k only: not on its place in a
file, the batch around it or the number of devices, which change its last bits at most. Letters: N
images, B images of a batch, h x w latent pixels, C latent channels, L caption tokens, D channels of
the text encoder.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.config import unknown_name
from lit_jax.config.typed import require
from lit_jax.diffusion.gaussian import create_process
from lit_jax.diffusion.guidance import GUIDED_CHANNELS, guided, num_function_evaluations
from lit_jax.diffusion.samplers import SAMPLERS, per_image_noise
from lit_jax.models import functional
from lit_jax.models.conditions import TextCondition
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.sampling.drawing import make_process

Draw = Callable[[Any, Any, TextCondition, TextCondition], jax.Array]


@dataclass(frozen=True)
class TextProtocol:
    """Settings that define an image besides model, prompt and size. The defaults are those of
    PixArt.

    `sampler` is a row of `samplers.SAMPLERS`, `steps` a respacing string ("20"); `cfg_scale` 1
    switches guidance off; `cfg_channels` is a row of `guidance.GUIDED_CHANNELS`.
    """

    sampler: str = "dpm_solver"
    steps: str = "20"
    cfg_scale: float = 4.5
    cfg_channels: str = "all"
    seed: int = 0

    def function_evaluations(self) -> int:
        """Return evaluations of the network per image, guidance included."""
        times = SAMPLERS[self.sampler].times(create_process(self.steps))
        return num_function_evaluations(times, self.cfg_scale)


def check_protocol(protocol: TextProtocol, config: PixArtConfig) -> None:
    """Raise ValueError for a protocol that is not to be had of a model."""
    if protocol.sampler not in SAMPLERS:
        raise unknown_name("sampler", protocol.sampler, SAMPLERS)
    if protocol.cfg_channels not in GUIDED_CHANNELS:
        raise unknown_name("guidance channels", protocol.cfg_channels, GUIDED_CHANNELS)
    scale, seed = protocol.cfg_scale, protocol.seed
    require(math.isfinite(scale), f"guidance is {scale}; it must be a finite number")
    require(0 <= seed < 2**32, f"seed {seed} is not in 0..{2**32 - 1}")
    SAMPLERS[protocol.sampler].times(make_process(config, protocol.steps))


def prompt_keys(seed: int, prompts: Sequence[str], numbers: Sequence[int]) -> jax.Array:
    """Return keys of images, [N]: image n is number `numbers[n]` of `prompts[n]`.

    A key is a hash of the seed, of the UTF-8 bytes of the prompt and of the number.
    """
    key_Nx2 = np.empty((len(prompts), 2), np.uint32)
    for n, (prompt, number) in enumerate(zip(prompts, numbers, strict=True)):
        text = hashlib.sha256(prompt.encode()).hexdigest()
        digest = hashlib.sha256(f"image|{seed}|{text}|{number}".encode()).digest()
        key_Nx2[n] = np.frombuffer(digest[:8], "<u4")
    return jax.random.wrap_key_data(jnp.asarray(key_Nx2), impl="threefry2x32")


def text_conditions(
    texts: Sequence[np.ndarray],
    max_length: int,
    away: tuple[np.ndarray, np.ndarray] | None,
    own_mask: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[TextCondition, TextCondition]:
    """Return what the images of a batch are guided towards and away from, the former twice without
    `away`.

    texts: of every image the features [n, D] of the n tokens of its prompt. away: features [L, D]
    and mask [L], L = max_length; the mask counts with `own_mask` only, otherwise as many tokens are
    attended to as the prompt has, as in PixArt's sampler. size: height and width in pixels, for
    models with micro-conditions.
    """
    B, L, D = len(texts), max_length, texts[0].shape[1]
    tokens_BxLxD, mask_BxL = np.zeros((B, L, D), np.float32), np.zeros((B, L), np.int32)
    for row, kept_nxD in enumerate(texts):
        tokens_BxLxD[row, : len(kept_nxD)], mask_BxL[row, : len(kept_nxD)] = kept_nxD, 1
    sizes: tuple[Any, ...] = ()
    if size is not None:
        height, width = size
        sizes = (
            np.tile(np.array([[height, width]], np.float32), (B, 1)),
            np.full((B, 1), height / width, np.float32),
        )
    cond = TextCondition(tokens_BxLxD, mask_BxL, *sizes)
    if away is None:
        return cond, cond
    null_LxD, own_L = away
    null_mask_BxL = np.tile(own_L, (B, 1)) if own_mask else mask_BxL
    return cond, TextCondition(np.tile(null_LxD, (B, 1, 1)), null_mask_BxL, *sizes)


@functools.lru_cache(maxsize=8)
def make_text_sampler(
    config: PixArtConfig,
    protocol: TextProtocol,
    mesh: Mesh,
    latent_size: tuple[int, int],
    progress: Callable[[int], None] | None = None,
) -> Draw:
    """Return `f(params, key_B, cond, null_cond) -> latents_BxhxwxC`, float32, scaled as the model
    sees them.

    One key per image (`prompt_keys`); `cond` and `null_cond` are TextConditions of one structure:
    tokens [B, L, D], mask [B, L] and, for models with micro-conditions, the sizes. Host arrays (the
    same on every process) and placed ones will do. One compiled program, the batch split over the
    mesh, whose size must divide B; the result is on every device. The same arguments give the same
    function, so that the grids of a run compile once.
    """
    process = make_process(config, protocol.steps)
    network = functional.apply_fn(config)
    run = SAMPLERS[protocol.sampler]
    shape = (*latent_size, config.in_channels)
    batch = sharding.batch_sharding(mesh)

    def draw(
        params: Any, key_B: jax.Array, cond: TextCondition, null_cond: TextCondition
    ) -> jax.Array:
        key_B, cond, null_cond = jax.lax.with_sharding_constraint((key_B, cond, null_cond), batch)
        x_T, noise_fn = per_image_noise(key_B, shape)
        denoiser = guided(
            lambda x, t, condition: network(params, x, t, condition),
            cond,
            null_cond,
            protocol.cfg_scale,
            protocol.cfg_channels,
        )
        latents_BxhxwxC: jax.Array = run(denoiser, process, x_T, noise_fn, progress=progress)
        return latents_BxhxwxC.astype(jnp.float32)

    return jax.jit(draw, out_shardings=sharding.replicated(mesh))
