"""`python -m lit_jax sample`: images from a model folder or a training workdir.

Writes `samples.npz` in the layout of the ADM evaluator (`arr_0` uint8 [N, H, W, C]), the labels,
a PNG grid and `sample.json` with everything that defines the images. Image i depends on the seed,
i and its label only: not on the batch size or the number of devices.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lit_jax import files, sharding
from lit_jax.config import DiTConfig, MeshConfig, unknown_name
from lit_jax.data.transforms import to_uint8
from lit_jax.diffusion.gaussian import GaussianProcess, create_process
from lit_jax.diffusion.guidance import GUIDED_CHANNELS, guided, num_function_evaluations
from lit_jax.diffusion.samplers import SAMPLERS, image_keys, per_image_noise
from lit_jax.evaluation.images import grid_of, write_png
from lit_jax.models import zoo
from lit_jax.weights import folder
from lit_jax.weights.fingerprint import params_sha256

Say = Callable[[str], None]
PIXEL_CHANNELS = (1, 3)
SAMPLING = 0x5A3B1E  # keeps the noise of image i apart from the noise of training step i


@dataclass(frozen=True)
class Protocol:
    """What defines a set of samples besides the model.

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
        """Evaluations of the network per image, guidance included."""
        process = create_process(self.steps)
        return num_function_evaluations(process, self.cfg_scale, self.cfg_interval)


def sample(
    model: Path | str,
    out: Path | str,
    num_samples: int,
    protocol: Protocol,
    labels: tuple[int, ...] = (),
    batch_size: int = 64,
    say: Say = print,
) -> Path:
    """Draws `num_samples` images and writes them into the folder `out`, which is returned.

    Labels are repeated in the order given; without labels the classes take turns. A model of
    latents (in_channels other than 1 or 3) gives `latents.npz` (float32), to be decoded by its VAE.

    Raises ValueError before compiling for a missing model, an unknown sampler, labels out of
    range, guidance of a model without null class, or an `out` that holds samples already.
    """
    out = Path(out)
    config = folder.read_dit_config(model)
    check(config, protocol, labels, num_samples, batch_size)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out is a folder")
    if (out / "sample.json").exists():
        raise ValueError(f"{out} already holds samples; choose another --out or remove it")
    mesh = sharding.make_mesh(MeshConfig())
    config, params = load_sharded(model, mesh)
    label_N = assign_labels(config, labels, num_samples)
    say(
        f"sampling {num_samples} images from {model}: {protocol.sampler}, steps {protocol.steps},"
        f" guidance {protocol.cfg_scale} on {protocol.cfg_channels} channels,"
        f" {protocol.function_evaluations()} network evaluations per image"
    )
    images = generate(config, params, protocol, label_N, num_samples, mesh, batch_size, say)
    if jax.process_index() == 0:
        write(out, config, images, label_N)
        record = {
            "model": str(model),
            "weights_sha256": params_sha256(params),
            "protocol": dataclasses.asdict(protocol),
            "network_evaluations": protocol.function_evaluations(),
            "count": num_samples,
            "vae": None,
            "dtype": config.dtype,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }
        files.write_text(out / "sample.json", json.dumps(record, indent=2) + "\n")
        say(f"wrote {out}")
    return out


def check(
    config: DiTConfig,
    protocol: Protocol,
    labels: tuple[int, ...],
    num_samples: int,
    batch_size: int,
) -> None:
    """Refuses what cannot be sampled, with the values and the remedy."""
    if protocol.sampler not in SAMPLERS:
        raise unknown_name("sampler", protocol.sampler, SAMPLERS)
    if protocol.cfg_channels not in GUIDED_CHANNELS:
        raise unknown_name("guidance channels", protocol.cfg_channels, GUIDED_CHANNELS)
    if num_samples < 1 or batch_size < 1:
        raise ValueError(
            f"num_samples {num_samples} and batch_size {batch_size} must be at least 1"
        )
    if not 0 <= protocol.seed < 2**32:
        raise ValueError(f"seed {protocol.seed} is not in 0..{2**32 - 1}")
    if labels and not config.num_classes:
        raise ValueError("--labels are given, but the model is unconditional")
    if wrong := [label for label in labels if not 0 <= label < config.num_classes]:
        raise ValueError(f"labels {wrong} are not in 0..{config.num_classes - 1}")
    if protocol.cfg_scale != 1.0 and config.null_label is None:
        raise ValueError(
            f"guidance {protocol.cfg_scale} needs a null class, which this model"
            " was not trained with; use --cfg_scale 1"
        )
    protocol.function_evaluations()


def assign_labels(config: DiTConfig, labels: tuple[int, ...], count: int) -> np.ndarray | None:
    """The label of each image, int32 [count]; None for an unconditional model."""
    if not config.num_classes:
        return None
    return np.resize(np.asarray(labels or range(config.num_classes), np.int32), count)


def make_process(config: DiTConfig, steps: str) -> GaussianProcess:
    """The (respaced) process whose variance is the one this model was built for."""
    var_type = "learned_range" if config.learn_sigma else "fixed_large"
    return create_process(steps, var_type=var_type)


def load_sharded(model: Path | str, mesh: Mesh) -> tuple[DiTConfig, Any]:
    """Configuration and parameters of a model folder or workdir, straight onto the mesh."""
    config = folder.read_dit_config(model)
    shardings = sharding.tree_shardings(zoo.abstract_params(config), mesh)
    return config, folder.load_model_dir(model, shardings)[1]


@functools.lru_cache(maxsize=8)
def make_sampler(
    config: DiTConfig, protocol: Protocol, mesh: Mesh, progress: Callable[[int], None] | None = None
) -> Callable[..., jax.Array]:
    """`f(params, image_index_B, label_B) -> float32 [B, H, W, C]`, one compiled loop, the batch
    split over the mesh and the result on every device. The same arguments give the same function,
    so that the grids of a run compile once."""
    process = make_process(config, protocol.steps)
    network = zoo.apply_fn(config)
    run = SAMPLERS[protocol.sampler]
    shape = (*config.image_size, config.in_channels)

    def draw(params: Any, index_B: jax.Array, label_B: jax.Array | None) -> jax.Array:
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
        return run(denoiser, process, x_T, noise_fn, progress=progress)

    return jax.jit(draw, out_shardings=sharding.replicated(mesh))


def generate(
    config: DiTConfig,
    params: Any,
    protocol: Protocol,
    label_N: np.ndarray | None,
    count: int,
    mesh: Mesh,
    batch_size: int,
    say: Say | None = None,
) -> np.ndarray:
    """Images 0 .. count-1 as float32 [count, H, W, C], in batches of one compiled size."""
    batch_size = -(-min(batch_size, count) // mesh.size) * mesh.size
    batches = -(-count // batch_size)
    num_steps = create_process(protocol.steps).num_steps
    progress = _Progress(batches * num_steps, say) if say is not None else None
    draw = make_sampler(config, protocol, mesh, progress)
    images = []
    for start in range(0, count, batch_size):
        # The last batch is filled with images nobody keeps, so that nothing is compiled twice.
        index_B = np.arange(start, start + batch_size, dtype=np.int32)
        batch = {"index": index_B}
        if label_N is not None:
            batch["label"] = label_N[np.minimum(index_B, count - 1)]
        placed = _place_everywhere(batch, mesh)
        images.append(np.asarray(draw(params, placed["index"], placed.get("label"))))
    return np.concatenate(images)[:count]


def draw_grid(
    config: DiTConfig, params: Any, protocol: Protocol, count: int, mesh: Mesh, path: Path
) -> np.ndarray | None:
    """A grid of `count` images for looking at a run, saved as PNG: uint8 [height, width, C].

    Shows the first three channels, or the first of two. None, and no file, when the samples are
    not finite, as those of a young model may be.
    """
    label_N = assign_labels(config, (), count)
    images = generate(config, params, protocol, label_N, count, mesh, batch_size=count)
    if not np.all(np.isfinite(images)):
        return None
    grid = grid_of(to_uint8(images[..., : 3 if config.in_channels > 2 else 1]), columns=10)
    if jax.process_index() == 0:
        write_png(path, grid)
    return grid


def write(out: Path, config: DiTConfig, images: np.ndarray, label_N: np.ndarray | None) -> None:
    """Images or latents, and the grid of the first of them."""
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {} if label_N is None else {"labels": label_N}
    if config.in_channels not in PIXEL_CHANNELS:
        np.savez(out / "latents.npz", arr_0=images, **arrays)
        return
    pixels = to_uint8(images)
    np.savez(out / "samples.npz", arr_0=pixels, **arrays)
    write_png(out / "grid.png", grid_of(pixels[:100], columns=10))


def _place_everywhere(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays that every process knows whole -> arrays split over the mesh."""
    place = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, place, array.__getitem__)
        for name, array in batch.items()
    }


class _Progress:
    """Counts sampler steps and prints a line with the remaining time every few seconds."""

    INTERVAL = 5.0

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say = total, say
        self._done = 0
        self._began = self._last = time.perf_counter()

    def __call__(self, step: int) -> None:
        self._done += 1
        now = time.perf_counter()
        if now - self._last >= self.INTERVAL:
            self._last = now
            remaining = (now - self._began) / self._done * (self._total - self._done)
            self._say(f"  step {self._done}/{self._total}  ETA {remaining:.0f} s")
