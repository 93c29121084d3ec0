"""`python -m lit_jax sample`: images from a model folder or a training workdir.

Writes `samples.npz` in the layout of the ADM evaluator (`arr_0` uint8 [N, H, W, C]), the labels, a
PNG grid and `sample.json` with everything that defines the images. The same command resumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from lit_jax import sharding
from lit_jax.commands.sample.checks import INFORMATION, Job, check, check_space
from lit_jax.config import MeshConfig
from lit_jax.config.sample import SampleConfig
from lit_jax.data.transforms import to_uint8
from lit_jax.evaluation.npz_images import LATENTS, RECORD, SAMPLES
from lit_jax.models.attention import mixer_class
from lit_jax.runs.hosts import Log, log_on_first_process, share
from lit_jax.runs.output import Output
from lit_jax.runs.progress import Progress
from lit_jax.sampling.grids import GRID, GRID_COLUMNS, GRID_COUNT
from lit_jax.sampling.labels import assign_labels
from lit_jax.sampling.sampler import (
    LabelBatches,
    StepProgress,
    fitting_batch,
    function_evaluations,
    make_sampler,
    require_finite,
)
from lit_jax.sampling.shards import Shards
from lit_jax.sampling.windows import windows_of, with_averages
from lit_jax.storage.npz import Member, write_npz
from lit_jax.storage.png import grid_of, write_png
from lit_jax.version import VERSION

FILES = {"images": SAMPLES, "latents": LATENTS}
"""Array of a shard -> the file of the whole set, as `arr_0`."""

DTYPES = {"images": np.uint8, "latents": np.float32}


def sample(config: SampleConfig, log: Log = log_on_first_process) -> Path:
    """Draw the images of `config` into its folder, which is returned.

    Every process of a multi-host job makes the same call; all of them see the folder. Raises
    ValueError before compiling for a job that cannot work, an output of another request included;
    FloatingPointError for an image that is not finite.
    """
    job = check(config)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices(), config.sequence)
    with Output.open(job.out, job.request(), RECORD, ignore=INFORMATION, log=log) as out:
        if out.done:
            log(f"nothing to do: {config.out} holds these {config.num_samples} samples")
            return out.path
        shards = job.shards
        missing = out.missing(range(len(shards)), lambda number: out.has(shards.name(number)))
        check_space(job, out, missing)
        announce(job, len(missing), log)
        out.begin()
        label_N = assign_labels(
            job.network, config.labels, shards.count, config.label_policy, config.protocol.seed
        )
        draw_shards(job, out, mesh, label_N, share(missing), log)
        out.close(lambda: finish(job, out, label_N))
        log(f"wrote {out.path}")
    return out.path


def announce(job: Job, missing: int, log: Log) -> None:
    """Log the request, and the assumptions that a reader should know."""
    config, protocol = job.config, job.config.protocol
    log(
        f"sampling {config.num_samples} images from {config.model}: {protocol.sampler}, steps"
        f" {protocol.steps}, guidance {protocol.cfg_scale} on {protocol.cfg_channels} channels,"
        f" {function_evaluations(protocol)} network evaluations per image"
    )
    if config.window_size:
        log(
            f"note: each token attends to those at a distance below {config.window_size};"
            f" {config.model} was not trained for that"
        )
    if config.sequence > 1:
        log(
            f"{config.sequence} devices share an image; in each layer they exchange"
            f" {mixer_class(job.network.mixer).EXCHANGED}"
        )
    if job.vae is not None and job.model.vae is None:
        vae = job.vae.vae_identity
        log(
            f"note: {config.model} does not record its VAE; {vae.id} is used (sha256"
            f" {vae.sha256[:12]}, scale {vae.scaling_factor})"
        )
    if missing < len(job.shards):
        log(f"{missing} of {len(job.shards)} shards are left")


def draw_shards(
    job: Job, out: Output, mesh: Any, label_N: np.ndarray | None, numbers: list[int], log: Log
) -> None:
    """Draw and write the shards of these numbers."""
    if not numbers:
        return
    config, shards, network = job.config, job.shards, job.network
    params = with_averages(network, job.model.params(mesh), mesh)
    vae: Any = None if job.vae is None else job.vae.config
    vae_params = None if job.vae is None else job.vae.params(mesh)
    size = fitting_batch(config.batch_size, shards.size, sharding.batch_devices(mesh))
    batches = sum(-(-(stop - start) // size) for start, stop in map(shards.span, numbers))
    with Progress("sampling", batches * size, "image", log) as progress:
        steps = StepProgress(progress, network, config.protocol, size)
        draw = make_sampler(
            network,
            config.protocol,
            mesh,
            vae=vae,
            decode_batch_size=config.decode_batch_size,
            progress=steps.callback,
        )
        images = LabelBatches(
            draw,
            params,
            vae_params,
            config.protocol.seed,
            label_N,
            network.null_label,
            size,
            mesh,
            steps,
        )
        for number in numbers:
            out.save(shards.name(number), **draw_shard(job, images, number))
            start, stop = shards.span(number)
            log(
                f"shard {number + 1} of {len(shards)} (images {start} to {stop - 1}):"
                f" {progress.speed()}"
            )


def draw_shard(job: Job, images: LabelBatches, number: int) -> dict[str, np.ndarray]:
    """Return the arrays of a shard: uint8 images [n, H, W, C] and/or float32 latents [n, h, w, L],
    their labels, and the devices they were drawn on."""
    start, stop = job.shards.span(number)
    label_N = images.label_N
    arrays = {
        name: np.empty((stop - start, *shape), DTYPES[name]) for name, shape in job.shapes.items()
    }
    if label_N is not None:
        arrays["labels"] = label_N[start:stop]
    remedy = "another guidance scale, or --dtype float32"
    for first, x_BxHxWxC, decoded_BxHxWxC in images.batches(start, stop):
        pixels = x_BxHxWxC if decoded_BxHxWxC is None else decoded_BxHxWxC
        names = [
            f"image {index}" + ("" if label_N is None else f" (label {label_N[index]})")
            for index in range(first, first + len(pixels))
        ]
        require_finite(x_BxHxWxC, names, "sampler", remedy)
        require_finite(pixels, names, "VAE", remedy)
        place = slice(first - start, first - start + len(pixels))
        if "latents" in arrays:
            arrays["latents"][place] = x_BxHxWxC
        if "images" in arrays:
            arrays["images"][place] = to_uint8(pixels)
    arrays["devices"] = np.array(f"{jax.local_device_count()} x {jax.devices()[0].device_kind}")
    return arrays


def finish(job: Job, out: Output, label_N: np.ndarray | None) -> dict[str, Any]:
    """Write the files of the whole set; return the content of `sample.json`."""
    merge(job, out, label_N)
    return record_of(job, out)


def merge(job: Job, out: Output, label_N: np.ndarray | None) -> None:
    """Write the shards in order as `samples.npz` and `latents.npz`, one in memory at a time, and
    the grid of the first images. Existing files are replaced, whole."""
    shards: Shards = job.shards
    for name, shape in job.shapes.items():
        pieces = (out.load(shards.name(n), name)[name] for n in range(len(shards)))
        members = {"arr_0": Member((shards.count, *shape), DTYPES[name], pieces)}
        if label_N is not None:
            members["labels"] = Member(label_N.shape, np.int32, [label_N])
        write_npz(out.path / FILES[name], members)
    if "images" in job.shapes:
        first = -(-min(GRID_COUNT, shards.count) // shards.size)
        parts = [out.load(shards.name(n), "images")["images"] for n in range(first)]
        images_NxHxWxC = np.concatenate(parts)[:GRID_COUNT]
        write_png(out.path / GRID, grid_of(images_NxHxWxC, columns=GRID_COLUMNS))


def record_of(job: Job, out: Output) -> dict[str, Any]:
    """Return the content of `sample.json`."""
    shards, request = job.shards, out.request
    drawn_on = {str(out.load(shards.name(n), "devices")["devices"]) for n in range(len(shards))}
    return {
        "model": job.config.model,
        "weights_sha256": request["weights_sha256"],
        "windows": windows_of(job.network, job.config.window_size),
        "protocol": request["protocol"],
        "network_evaluations": function_evaluations(job.config.protocol),
        "count": shards.count,
        "label_policy": request["label_policy"],
        "labels": request["labels"],
        "vae": request["vae"],
        "vae_named_by_model": job.model.vae is not None,
        "dtype": job.config.dtype,
        "matmul_precision": request["matmul_precision"],
        "devices": ", ".join(sorted(drawn_on)),
        "versions": {
            "lit_jax": VERSION,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
    }
