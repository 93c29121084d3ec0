"""From parameters to images: the compiled sampler, batches of it, and the grids of a run.

Image i depends on the seed, i and its label only: not on the batch size or the number of devices,
which change its last bits at most. Letters: N images, B images of a batch, b those of one device,
H x W image pixels (latent pixels h x w for a model of latents), C channels, L latent channels.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lit_jax import sharding
from lit_jax.checkpoints import folder
from lit_jax.data.transforms import to_uint8
from lit_jax.diffusion.gaussian import GaussianProcess, create_process
from lit_jax.diffusion.guidance import guided, num_function_evaluations
from lit_jax.diffusion.samplers import SAMPLERS, image_keys, per_image_noise
from lit_jax.models import functional
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.registry import DenoiserConfig, LabelledConfig
from lit_jax.runs.hosts import Log
from lit_jax.runs.progress import duration
from lit_jax.sampling.labels import assign_labels
from lit_jax.storage.png import grid_of, write_png

Vae = tuple[AutoencoderConfig, Any]
"""Configuration and parameters, the latter on every device of a mesh."""

PIXEL_CHANNELS = (1, 3)
SAMPLING = 0x5A3B1E  # keeps the noise of image i apart from the noise of training step i
DECODE_BATCH = 8  # images per device; one of 256 x 256 needs about 0.25 GB in the released VAE


@dataclass(frozen=True)
class Protocol:
    """Settings that define a set of samples besides the model.

    `steps` is a respacing string ("250", "ddim50"); `cfg_scale` 1 switches guidance off;
    `cfg_channels` is a row of `guidance.GUIDED_CHANNELS`; `cfg_interval` limits guidance to
    original timesteps low <= t <= high.
    """

    sampler: str = "ddpm"
    steps: str = "250"
    cfg_scale: float = 1.0
    cfg_channels: str = "three"
    cfg_interval: tuple[float, float] | None = None
    seed: int = 0

    def function_evaluations(self) -> int:
        """Return evaluations of the network per image, guidance included."""
        times = SAMPLERS[self.sampler].times(create_process(self.steps))
        return num_function_evaluations(times, self.cfg_scale, self.cfg_interval)


def make_process(config: DenoiserConfig, steps: str) -> GaussianProcess:
    """Return the (respaced) process whose variance is the one this model was built for."""
    var_type = "learned_range" if config.learn_sigma else "fixed_large"
    return create_process(steps, var_type=var_type)


def load_sharded(
    model: Path | str, mesh: Mesh, param_dtype: str = "float32"
) -> tuple[DenoiserConfig, Any]:
    """Return configuration and parameters of a denoiser's folder or workdir, straight onto the
    mesh."""
    config = folder.read_denoiser_config(model)
    shardings = functional.shardings(config, mesh)
    return config, folder.load_model_dir(model, shardings, param_dtype)[1]


def load_vae(path: Path | str, mesh: Mesh) -> Vae:
    """Return the autoencoder of a model folder, on every device of the mesh.

    Raises ValueError when the folder holds another kind of network.
    """
    config = folder.read_config(path)
    if not isinstance(config, AutoencoderConfig):
        raise ValueError(f"{path} holds a {config.family}; a VAE (AutoencoderKL) is needed")
    shardings = functional.shardings(config, mesh)
    return config, folder.load_model_dir(path, shardings)[1]


@functools.lru_cache(maxsize=8)
def make_sampler(
    config: LabelledConfig,
    protocol: Protocol,
    mesh: Mesh,
    progress: Callable[[int], None] | None = None,
    vae: AutoencoderConfig | None = None,
    decode_batch_size: int = DECODE_BATCH,
) -> Callable[..., tuple[jax.Array, jax.Array | None]]:
    """Return `f(params, vae_params, image_index_B, label_B) -> (x_BxHxWxC, decoded_BxHxWxC)`,
    float32.

    One compiled program, the batch split over the mesh and the results on every device; on a mesh
    with an axis `sequence`, the model's rows are split as well. x is what the model makes;
    `decoded` is None without a VAE. The same arguments give the same function, so that the grids of
    a run compile once.
    """
    process = make_process(config, protocol.steps)
    network = functional.apply_fn(config)
    if sharding.ROW_AXIS in mesh.shape:
        network = sharding.split_rows(network, mesh)
    run = SAMPLERS[protocol.sampler]
    shape = (*config.image_size, config.in_channels)
    decode = None if vae is None else decoder(vae, mesh, decode_batch_size)

    def draw(
        params: Any, vae_params: Any, index_B: jax.Array, label_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        keys_B = image_keys(jax.random.fold_in(jax.random.key(protocol.seed), SAMPLING), index_B)
        x_T, noise_fn = per_image_noise(keys_B, shape)
        null_B = None
        if config.null_label is not None and label_B is not None:
            null_B = jnp.full_like(label_B, config.null_label)
        denoiser = guided(
            lambda x, t, cond: network(params, x, t, cond),
            label_B,
            null_B,
            protocol.cfg_scale,
            protocol.cfg_channels,
            protocol.cfg_interval,
        )
        x_BxHxWxC = run(denoiser, process, x_T, noise_fn, progress=progress)
        return x_BxHxWxC, None if decode is None else decode(vae_params, x_BxHxWxC)

    return jax.jit(draw, out_shardings=sharding.replicated(mesh))


def decoder(
    vae: AutoencoderConfig, mesh: Mesh, decode_batch_size: int
) -> Callable[[Any, jax.Array], jax.Array]:
    """Return scaled latents [B, h, w, L] -> images [B, H, W, C]. Every device decodes its own part
    of the batch, at most `decode_batch_size` images at a time."""

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


@dataclass(frozen=True)
class Drawer:
    """Draws images by their numbers, in batches of one compiled size."""

    draw: Callable[..., tuple[jax.Array, jax.Array | None]]
    params: Any
    vae_params: Any
    label_N: np.ndarray | None
    batch_size: int
    mesh: Mesh

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield images start .. stop-1 as (number of the first, x, decoded or None), float32."""
        for first in range(start, stop, self.batch_size):
            # The last batch is filled with images nobody keeps, so that nothing is compiled twice.
            index_B = np.arange(first, first + self.batch_size, dtype=np.int32)
            batch = {"index": index_B}
            if self.label_N is not None:
                batch["label"] = self.label_N[np.minimum(index_B, len(self.label_N) - 1)]
            placed = place_everywhere(batch, self.mesh)
            x_BxHxWxC, decoded_BxHxWxC = self.draw(
                self.params, self.vae_params, placed["index"], placed.get("label")
            )
            kept = min(self.batch_size, stop - first)
            decoded = None if decoded_BxHxWxC is None else np.asarray(decoded_BxHxWxC)[:kept]
            yield first, np.asarray(x_BxHxWxC)[:kept], decoded


def fitting_batch(batch_size: int, count: int, devices: int) -> int:
    """Return the size of the batches that draw `count` images: as few batches of about `batch_size`
    as possible, all of one size, with the same number of images on every device."""
    batches = -(-count // batch_size)
    return -(-count // (batches * devices)) * devices


def generate(
    config: LabelledConfig,
    params: Any,
    protocol: Protocol,
    label_N: np.ndarray | None,
    count: int,
    mesh: Mesh,
    batch_size: int,
    log: Log | None = None,
    vae: Vae | None = None,
) -> np.ndarray:
    """Return images 0 .. count-1 as float32 [count, H, W, C]: decoded where there is a VAE,
    otherwise what the model makes."""
    batch_size = fitting_batch(batch_size, count, sharding.batch_devices(mesh))
    num_steps = create_process(protocol.steps).num_steps
    progress = Progress(-(-count // batch_size) * num_steps, count, log) if log else None
    vae_config, vae_params = vae or (None, None)
    draw = make_sampler(config, protocol, mesh, progress, vae_config)
    drawer = Drawer(draw, params, vae_params, label_N, batch_size, mesh)
    parts = [x if images is None else images for _, x, images in drawer.batches(0, count)]
    return np.concatenate(parts)


def draw_grid(
    config: LabelledConfig,
    params: Any,
    protocol: Protocol,
    count: int,
    mesh: Mesh,
    path: Path,
    vae: Vae | None = None,
) -> np.ndarray | None:
    """Return a grid of `count` images for looking at a run, saved as PNG: uint8 [height, width, C].

    Latents are decoded by `vae`; without one their first three channels are shown, or the first of
    two. None, and no file, when the samples are not finite, as those of a young model may be.
    """
    label_N = assign_labels(config, (), count)
    images = generate(config, params, protocol, label_N, count, mesh, batch_size=count, vae=vae)
    return save_grid(images, path)


def save_grid(images_NxHxWxC: np.ndarray, path: Path) -> np.ndarray | None:
    """Return images in [-1, 1] as a grid uint8 [height, width, 1 or 3], written by process 0; None,
    and no file, when they are not finite."""
    if not np.all(np.isfinite(images_NxHxWxC)):
        return None
    shown = 3 if images_NxHxWxC.shape[-1] > 2 else 1
    grid = grid_of(to_uint8(images_NxHxWxC[..., :shown]), columns=10)
    if jax.process_index() == 0:
        write_png(path, grid)
    return grid


def place_everywhere(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Return host arrays that every process knows whole -> arrays split over the mesh."""
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, place, array.__getitem__)
        for name, array in batch.items()
    }


class Progress:
    """Counts sampler steps over all batches; says speed and remaining time now and then."""

    INTERVAL = 15.0  # seconds

    def __init__(self, steps: int, images: int, log: Log) -> None:
        self._steps, self._images, self._log = steps, images, log
        self._done = 0
        self._began = self._last = time.perf_counter()

    def __call__(self, step: int) -> None:
        """Called on the host after every step of every batch."""
        now = time.perf_counter()
        if not self._done:  # the clock starts after the compilation
            self._began = self._last = now
        self._done += 1
        if now - self._last >= self.INTERVAL:
            self._last = now
            self._log(f"  step {self._done}/{self._steps}: {self.speed()}")

    def speed(self) -> str:
        """Return 12.3 images/s, ETA 1:02:03."""
        per_step = (time.perf_counter() - self._began) / max(self._done - 1, 1)
        per_second = self._images / (self._steps * max(per_step, 1e-9))
        return f"{per_second:.3g} images/s, ETA {duration(per_step * (self._steps - self._done))}"
