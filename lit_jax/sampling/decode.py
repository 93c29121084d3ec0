"""Decoding of scaled latents by a VAE, on all devices of a mesh.

B images, h x w latent pixels, L latent channels, H x W image pixels, C image channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lit_jax import sharding
from lit_jax.models import functional
from lit_jax.models.autoencoder.config import AutoencoderConfig

PIXEL_CHANNELS = (1, 3)
DECODE_BATCH = 8  # images per device; one of 256 x 256 needs about 0.25 GB in the released VAE


def decoder(
    vae: AutoencoderConfig, mesh: Mesh, decode_batch_size: int
) -> Callable[[Any, jax.Array], jax.Array]:
    """Return `f(params, scaled latents [B, h, w, L]) -> images [B, H, W, C]`. Every device decodes
    its own part of the batch, at most `decode_batch_size` images at a time."""

    def decode(params: Any, latents_bxhxwxL: jax.Array) -> jax.Array:
        model = functional.with_params(vae, params)
        count = len(latents_bxhxwxL)
        size = next(k for k in range(min(decode_batch_size, count), 0, -1) if count % k == 0)
        parts = latents_bxhxwxL.reshape(-1, size, *latents_bxhxwxL.shape[1:])
        images = jax.lax.map(model.decode_scaled, parts)
        return images.reshape(count, *images.shape[2:])

    batch = PartitionSpec(sharding.BATCH_AXES)
    return jax.shard_map(
        decode, mesh=mesh, in_specs=(PartitionSpec(), batch), out_specs=batch, check_vma=False
    )


@functools.lru_cache(maxsize=8)
def decoding_program(
    vae: AutoencoderConfig, mesh: Mesh, decode_batch_size: int = 1
) -> Callable[..., jax.Array]:
    """Return the compiled `decoder`, with the images on every device."""
    program: Callable[..., jax.Array] = jax.jit(
        decoder(vae, mesh, decode_batch_size), out_shardings=sharding.replicated(mesh)
    )
    return program


def decode_in_batches(
    vae: AutoencoderConfig, params: Any, latents_NxhxwxL: np.ndarray, mesh: Mesh, size: int
) -> np.ndarray:
    """Decode N latents in batches of `size`, a multiple of the mesh; the last one is filled up."""
    program = decoding_program(vae, mesh)
    images = []
    for first in range(0, len(latents_NxhxwxL), size):
        index_B = np.minimum(np.arange(first, first + size), len(latents_NxhxwxL) - 1)
        images.append(np.asarray(program(params, latents_NxhxwxL[index_B])))
    return np.concatenate(images)[: len(latents_NxhxwxL)]
