"""The compiled sampler, for denoisers on labels and on captions.

Image i of a set depends on the seed, i and its label; image k of a prompt on the seed, the text and
k. Neither depends on the batch size or the number of devices, which change its last bits at most.
Letters: N images, B images of a batch, H x W pixels of the model (latent pixels h x w for a model
of latents), C channels, L caption tokens, D channels of the text encoder.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.config import unknown_name
from lit_jax.config.protocol import Protocol
from lit_jax.config.typed import require
from lit_jax.diffusion.gaussian import GaussianProcess, create_process
from lit_jax.diffusion.guidance import GUIDED_CHANNELS, guided, num_function_evaluations
from lit_jax.diffusion.samplers import SAMPLERS, image_keys, per_image_noise
from lit_jax.models import functional
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.conditions import TextCondition
from lit_jax.models.cost import forward_macs
from lit_jax.models.registry import DenoiserConfig
from lit_jax.runs.progress import Progress
from lit_jax.sampling.decode import DECODE_BATCH, decoder

SAMPLING = 0x5A3B1E  # keeps the noise of image i apart from the noise of training step i

Draw = Callable[..., tuple[jax.Array, jax.Array | None]]

LONG_STEP_MACS = {"cpu": 2e10}
"""Backend -> multiply-accumulates of a step of about a second; 1e13 on accelerators."""


def make_process(config: DenoiserConfig, steps: str) -> GaussianProcess:
    """Return the (respaced) process whose variance is the one this model was built for."""
    var_type = "learned_range" if config.learn_sigma else "fixed_large"
    return create_process(steps, var_type=var_type)


def function_evaluations(protocol: Protocol) -> int:
    """Return the evaluations of the network per image, guidance included."""
    times = SAMPLERS[protocol.sampler].times(create_process(protocol.steps))
    return num_function_evaluations(times, protocol.cfg_scale, protocol.cfg_interval)


def check_protocol(protocol: Protocol, config: DenoiserConfig) -> None:
    """Raise ValueError for a protocol that a model cannot follow."""
    if protocol.sampler not in SAMPLERS:
        raise unknown_name("sampler", protocol.sampler, SAMPLERS)
    if protocol.cfg_channels not in GUIDED_CHANNELS:
        raise unknown_name("guidance channels", protocol.cfg_channels, GUIDED_CHANNELS)
    scale, seed, interval = protocol.cfg_scale, protocol.seed, protocol.cfg_interval
    require(math.isfinite(scale), f"cfg_scale is {scale}; it must be a finite number")
    require(0 <= seed < 2**32, f"seed {seed} is not in 0..{2**32 - 1}")
    require(
        interval is None or scale != 1.0,
        f"cfg_interval {interval} is given, but cfg_scale 1 is no guidance; give a scale, or leave"
        " the interval out",
    )
    require(
        scale == 1.0 or getattr(config, "null_label", 0) is not None,
        f"guidance {scale} needs a null class, which this model was not trained with; use"
        " --cfg_scale 1",
    )
    function_evaluations(protocol)


@functools.lru_cache(maxsize=8)
def make_sampler(
    config: DenoiserConfig,
    protocol: Protocol,
    mesh: Mesh,
    size: tuple[int, int] | None = None,
    vae: AutoencoderConfig | None = None,
    decode_batch_size: int = DECODE_BATCH,
    progress: Callable[[int], None] | None = None,
) -> Draw:
    """Return `f(params, vae_params, key_B, cond, uncond) -> (x_BxHxWxC, decoded_BxHxWxC)`, float32.

    One key per image (`label_keys`, `prompt_keys`); `cond` and `uncond` are labels [B], None, or
    TextConditions of one structure. Host arrays (the same on every process) and placed ones will
    do. `size` is height and width of x, by default those of the model; `decoded` is None without a
    `vae`.

    One compiled program, the batch split over the mesh, whose size must divide B; the results are
    on every device. On a mesh with an axis `sequence` the rows of an image are split as well. The
    same arguments return the same function, so that the grids of a run compile once.
    """
    process = make_process(config, protocol.steps)
    network = functional.apply_fn(config)
    if sharding.ROW_AXIS in mesh.shape:
        network = sharding.split_rows(network, mesh)
    run = SAMPLERS[protocol.sampler]
    shape = (*(size or config.image_size), config.in_channels)
    decode = None if vae is None else decoder(vae, mesh, decode_batch_size)
    batch = sharding.batch_sharding(mesh)

    def draw(
        params: Any, vae_params: Any, key_B: jax.Array, cond: Any, uncond: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        key_B, cond, uncond = jax.lax.with_sharding_constraint((key_B, cond, uncond), batch)
        x_T, noise_fn = per_image_noise(key_B, shape)
        denoiser = guided(
            lambda x, t, condition: network(params, x, t, condition),
            cond,
            uncond,
            protocol.cfg_scale,
            protocol.cfg_channels,
            protocol.cfg_interval,
        )
        x_BxHxWxC: jax.Array = run(denoiser, process, x_T, noise_fn, progress=progress)
        x_BxHxWxC = x_BxHxWxC.astype(jnp.float32)
        return x_BxHxWxC, None if decode is None else decode(vae_params, x_BxHxWxC)

    return jax.jit(draw, out_shardings=sharding.replicated(mesh))


class StepProgress:
    """Progress of a sampler in images.

    A program with a host callback cannot be kept in the compilation cache, so that single steps are
    counted only where each takes about a second or more; otherwise whole batches are.
    """

    def __init__(
        self, progress: Progress, config: DenoiserConfig, protocol: Protocol, batch_size: int
    ) -> None:
        limit = LONG_STEP_MACS.get(jax.default_backend(), 1e13)
        self._progress, self._images = progress, batch_size
        self._steps = create_process(protocol.steps).num_steps
        guided_twice = 2 if protocol.cfg_scale != 1.0 else 1
        self._by_step = forward_macs(config) * guided_twice * batch_size >= limit

    @property
    def callback(self) -> Callable[[int], None] | None:
        """Callback of the sampler, None where batches are counted."""
        return self._step if self._by_step else None

    def _step(self, step: int) -> None:
        self._progress.advance(self._images / self._steps)

    def batch_done(self) -> None:
        if not self._by_step:
            self._progress.advance(self._images)


# --- keys and conditions ---


@functools.partial(jax.jit, static_argnums=0)
def label_keys(seed: int, index_B: jax.Array) -> jax.Array:
    """Return the keys of images, [B]: a function of the seed and of the number of each image."""
    return image_keys(jax.random.fold_in(jax.random.key(seed), SAMPLING), index_B)


def prompt_keys(seed: int, prompts: Sequence[str], numbers: Sequence[int]) -> jax.Array:
    """Return the keys of images, [N]: image n is number `numbers[n]` of `prompts[n]`.

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
    uncond: tuple[np.ndarray, np.ndarray] | None,
    own_mask: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[TextCondition, TextCondition]:
    """Return the condition of the images of a batch and the unconditional one, the former twice
    without `uncond`.

    texts: of every image the features [n, D] of the n tokens of its prompt. uncond: features [L, D]
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
    if uncond is None:
        return cond, cond
    null_LxD, own_L = uncond
    null_mask_BxL = np.tile(own_L, (B, 1)) if own_mask else mask_BxL
    return cond, TextCondition(np.tile(null_LxD, (B, 1, 1)), null_mask_BxL, *sizes)


# --- batches ---


def fitting_batch(batch_size: int, count: int, devices: int) -> int:
    """Return the size of the batches that draw `count` images: as few batches of about `batch_size`
    as possible, all of one size, with the same number of images on every device."""
    batches = -(-count // batch_size)
    return -(-count // (batches * devices)) * devices


@dataclass(frozen=True)
class LabelBatches:
    """Images of a model on labels by their numbers, in batches of one compiled size."""

    draw: Draw
    params: Any
    vae_params: Any
    seed: int
    label_N: np.ndarray | None
    null_label: int | None
    batch_size: int
    mesh: Mesh
    steps: StepProgress | None = None

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield images start .. stop-1 as (number of the first, x, decoded or None), float32."""
        for first in range(start, stop, self.batch_size):
            # The last batch is filled with images that are dropped: nothing is compiled twice.
            index_B = np.arange(first, first + self.batch_size, dtype=np.int32)
            cond = uncond = None
            if self.label_N is not None:
                label_B = self.label_N[np.minimum(index_B, len(self.label_N) - 1)]
                cond = place_everywhere({"label": label_B}, self.mesh)["label"]
                if self.null_label is not None:
                    uncond = jnp.full_like(cond, self.null_label)
            key_B = label_keys(self.seed, jnp.asarray(index_B))
            x_BxHxWxC, decoded = self.draw(self.params, self.vae_params, key_B, cond, uncond)
            kept = min(self.batch_size, stop - first)
            images = None if decoded is None else np.asarray(decoded)[:kept]
            yield first, np.asarray(x_BxHxWxC)[:kept], images
            if self.steps is not None:
                self.steps.batch_done()


def place_everywhere(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Return host arrays that every process holds whole as arrays split over the mesh."""
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, place, array.__getitem__)
        for name, array in batch.items()
    }


def require_finite(array_Bx: np.ndarray, names: Sequence[str], where: str, remedy: str) -> None:
    """Raise FloatingPointError with the name of the first entry along axis 0 that is not finite."""
    finite_B = np.isfinite(array_Bx).all(axis=tuple(range(1, array_Bx.ndim)))
    if not finite_B.all():
        raise FloatingPointError(
            f"{names[int(np.argmin(finite_B))]} is not finite after the {where} and is not"
            f" written; check the weights, or try {remedy}"
        )
