"""`python -m lit_jax sample`: images from a model folder or a training workdir.

Writes `samples.npz` in the layout of the ADM evaluator (`arr_0` uint8 [N, H, W, C]), the labels,
a PNG grid and `sample.json` with everything that defines the images. Image i depends on the seed,
i and its label only: not on the batch size or the number of devices. The same command again goes on
where it was stopped.

Reads top-down: `sample` is the table of contents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.checkpoints.identity import params_sha256
from lit_jax.commands.sample.checks import (
    INFORMATION,
    REMEDY,
    Order,
    Plan,
    check_order,
    check_space,
    request_of,
)
from lit_jax.config import MeshConfig
from lit_jax.data.transforms import to_uint8
from lit_jax.diffusion.gaussian import create_process
from lit_jax.evaluation.npz_images import RECORD
from lit_jax.models.attention import mixer_class
from lit_jax.runs.hosts import Log, barrier, log_on_first_process
from lit_jax.runs.requests import REQUEST, require_same_request
from lit_jax.sampling.drawing import (
    DECODE_BATCH,
    Drawer,
    Progress,
    Protocol,
    fitting_batch,
    load_sharded,
    load_vae,
    make_sampler,
)
from lit_jax.sampling.labels import assign_labels
from lit_jax.sampling.shards import merge
from lit_jax.sampling.windows import windows_of, with_averages
from lit_jax.storage import files
from lit_jax.version import VERSION

SHARD_SIZE = 512


def sample(
    model: Path | str,
    out: Path | str,
    num_samples: int,
    protocol: Protocol,
    labels: tuple[int, ...] = (),
    batch_size: int = 64,
    log: Log = log_on_first_process,
    *,
    label_policy: str = "balanced",
    vae: Path | str = "",
    save_latents: bool = False,
    dtype: str = "float32",
    shard_size: int = SHARD_SIZE,
    decode_batch_size: int = DECODE_BATCH,
    sequence: int = 1,
    window_size: int = 0,
    down_factor: int = 0,
) -> Path:
    """Draw `num_samples` images and writes them into the folder `out`, which is returned.

    The same call again resumes; on a finished output it does nothing. Every process of a multi-host
    job makes the same call; `out` is a folder that all of them see.

    `labels` are repeated in the order given; without them `label_policy`, a row of
    `labels.LABEL_POLICIES`, decides. A model of latents needs the folder of its `vae`, or
    `save_latents`, which keeps the latents too (float32, `latents.npz`). `dtype` is what the
    denoiser computes in; the VAE computes in float32. `batch_size` counts images over the devices
    of a process, `decode_batch_size` images per device. `sequence` devices share the rows of one
    image, which is how one that is too large for a device is drawn. `window_size` puts circles of
    this radius into the attention of a softmax model, `down_factor` adds pooled tokens (CLEAR
    without training); 0: as the model is.

    Raises ValueError before compiling for whatever cannot work, an `out` of another request
    included; FloatingPointError for an image that is not finite.
    """
    order = Order(
        str(model),
        Path(out).expanduser(),
        num_samples,
        protocol,
        labels,
        label_policy,
        str(vae),
        save_latents,
        dtype,
        shard_size,
        batch_size,
        decode_batch_size,
        sequence,
        window_size,
        down_factor,
    )
    plan = check_order(order)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices(), sequence)
    params = load_sharded(model, mesh)[1]
    request = request_of(plan, params_sha256(params))
    params = with_averages(plan.config, params, mesh)
    require_same_request(order.out / REQUEST, request, REMEDY, INFORMATION)
    if (order.out / RECORD).exists():
        if jax.process_index() == 0:
            plan.shards.remove()
        log(f"nothing to do: {out} holds these {num_samples} samples")
        return order.out
    check_space(plan)
    announce(plan, log)
    pending = begin(plan, request)
    label_N = assign_labels(plan.config, labels, num_samples, label_policy, protocol.seed)
    draw_shards(plan, params, mesh, label_N, pending, log)
    barrier("all shards are drawn")
    if jax.process_index() == 0:
        finish(plan, request, label_N, log)
    barrier("the samples are written")
    return order.out


def announce(plan: Plan, log: Log) -> None:
    order, protocol = plan.order, plan.order.protocol
    log(
        f"sampling {order.num_samples} images from {order.model}: {protocol.sampler}, steps"
        f" {protocol.steps}, guidance {protocol.cfg_scale} on {protocol.cfg_channels} channels,"
        f" {protocol.function_evaluations()} network evaluations per image"
    )
    if order.window_size:
        log(
            f"note: each token sees those at a distance below {order.window_size}, which"
            f" {order.model} was not trained for"
        )
    if order.sequence > 1:
        log(
            f"{order.sequence} devices share an image; in each layer they exchange"
            f" {mixer_class(plan.config.mixer).EXCHANGED}"
        )
    if plan.vae is not None and not plan.vae_named_by_model:
        log(
            f"note: {order.model} does not say which VAE it was trained with; taking"
            f" {plan.vae.id} (sha256 {plan.vae.sha256[:12]}, scale {plan.vae.scaling_factor})"
        )


def begin(plan: Plan, request: dict[str, Any]) -> list[int]:
    """Write the request and return the shards that are left for this process: every n-th of those
    that no process, of this job or of one before, has written."""
    shards = plan.shards
    if jax.process_index() == 0:
        shards.remove_leftovers()
        if not (shards.out / REQUEST).exists():
            files.write_json(shards.out / REQUEST, request)
    barrier("the request is written")
    pending = shards.pending()
    # Nobody writes a shard before everybody has looked.
    barrier("the shards are listed")
    return pending[jax.process_index() :: jax.process_count()]


def draw_shards(
    plan: Plan,
    params: Any,
    mesh: Mesh,
    label_N: np.ndarray | None,
    numbers: list[int],
    log: Log,
) -> None:
    """Draw and writes the shards of these numbers."""
    if not numbers:
        return
    order, shards = plan.order, plan.shards
    batch_size = fitting_batch(order.batch_size, shards.size, sharding.batch_devices(mesh))
    spans = [shards.span(number) for number in numbers]
    batches = sum(-(-(stop - start) // batch_size) for start, stop in spans)
    steps = batches * create_process(order.protocol.steps).num_steps
    progress = Progress(steps, sum(stop - start for start, stop in spans), log)
    vae_config, vae_params = load_vae(order.vae, mesh) if order.vae else (None, None)
    draw = make_sampler(
        plan.config, order.protocol, mesh, progress, vae_config, order.decode_batch_size
    )
    drawer = Drawer(draw, params, vae_params, label_N, batch_size, mesh)
    if len(numbers) < len(shards):
        log(f"{len(numbers)} of {len(shards)} shards are left for this process")
    for number in numbers:
        shards.write(number, draw_shard(plan, drawer, number))
        jax.effects_barrier()  # the steps that the progress still has to hear of
        start, stop = shards.span(number)
        log(
            f"shard {number + 1} of {len(shards)} (images {start} to {stop - 1}):"
            f" {progress.speed()}"
        )


def draw_shard(plan: Plan, drawer: Drawer, number: int) -> dict[str, np.ndarray]:
    """Return the arrays of a shard: uint8 images [n, H, W, C] and/or float32 latents [n, h, w, L],
    their labels, and the devices they were drawn on.

    Raises FloatingPointError for values that are not finite; nothing is written then.
    """
    start, stop = plan.shards.span(number)
    arrays: dict[str, np.ndarray] = {}
    if drawer.label_N is not None:
        arrays["labels"] = drawer.label_N[start:stop]
    for name, shape in plan.shapes.items():
        arrays[name] = np.empty(
            (stop - start, *shape), np.float32 if name == "latents" else np.uint8
        )
    for first, x_BxHxWxC, decoded_BxHxWxC in drawer.batches(start, stop):
        images = x_BxHxWxC if decoded_BxHxWxC is None else decoded_BxHxWxC
        require_finite(x_BxHxWxC, first, drawer.label_N, "the sampler")
        require_finite(images, first, drawer.label_N, "the VAE")
        place = slice(first - start, first - start + len(images))
        if "latents" in arrays:
            arrays["latents"][place] = x_BxHxWxC
        if "images" in arrays:
            arrays["images"][place] = to_uint8(images)
    arrays["devices"] = np.array(f"{jax.local_device_count()} x {jax.devices()[0].device_kind}")
    return arrays


def require_finite(
    images_BxHxWxC: np.ndarray, first: int, label_N: np.ndarray | None, where: str
) -> None:
    """Raise FloatingPointError with the number and label of the first image that is not finite;
    `first` is the number of the first image of the batch."""
    finite_B = np.isfinite(images_BxHxWxC).all(axis=(1, 2, 3))
    if finite_B.all():
        return
    index = first + int(np.argmin(finite_B))
    label = "" if label_N is None else f" (label {label_N[index]})"
    raise FloatingPointError(
        f"image {index}{label} is not finite after {where}; its shard is not written. Check the"
        " weights and the guidance scale, or compute with --dtype float32"
    )


def finish(plan: Plan, request: dict[str, Any], label_N: np.ndarray | None, log: Log) -> None:
    """Merge the shards, then writes the record that marks completion, then removes the shards."""
    order, shards = plan.order, plan.shards
    if len(shards) > 1:
        log(f"merging {len(shards)} shards")
    merge(shards, plan.shapes, label_N)
    drawn_on = sorted({str(devices) for devices in shards.each("devices")})
    record = {
        "model": order.model,
        "weights_sha256": request["weights_sha256"],
        "windows": windows_of(plan.config, order.window_size),
        "protocol": request["protocol"],
        "network_evaluations": order.protocol.function_evaluations(),
        "count": order.num_samples,
        "label_policy": request["label_policy"],
        "labels": request["labels"],
        "vae": request["vae"],
        "vae_named_by_model": plan.vae_named_by_model,
        "dtype": order.dtype,
        "matmul_precision": request["matmul_precision"],
        "devices": ", ".join(drawn_on),
        "versions": {
            "lit_jax": VERSION,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
    }
    files.write_json(shards.out / RECORD, record)
    shards.remove()
    log(f"wrote {shards.out}")
