"""What the sample job refuses before it compiles or writes anything, and the request that an
output folder belongs to."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lit_jax.checkpoints import folder
from lit_jax.checkpoints.identity import VaeIdentity, vae_identity
from lit_jax.checkpoints.recorded import recorded_vae
from lit_jax.config import unknown_name
from lit_jax.diffusion.guidance import GUIDED_CHANNELS
from lit_jax.diffusion.samplers import SAMPLERS
from lit_jax.evaluation.npz_images import RECORD
from lit_jax.models.attention import mixer_class
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.family import architecture
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import LabelledConfig
from lit_jax.runs.requests import REQUEST, plain, require_space
from lit_jax.sampling.drawing import PIXEL_CHANNELS, Protocol
from lit_jax.sampling.labels import LABEL_POLICIES
from lit_jax.sampling.shards import ARRAYS, FOLDER, GRID, Shards
from lit_jax.sampling.windows import with_windows

DTYPES = ("float32", "bfloat16")

# Entries of a request that are for people: the same weights may lie in another folder.
INFORMATION = ("model", "vae.id")

REMEDY = "choose another --out, or remove it to draw again"


@dataclass(frozen=True)
class Order:
    """What a call of the job asks for."""

    model: str
    out: Path
    num_samples: int
    protocol: Protocol
    labels: tuple[int, ...]
    label_policy: str
    vae: str
    save_latents: bool
    dtype: str
    shard_size: int
    batch_size: int
    decode_batch_size: int
    sequence: int
    window_size: int
    down_factor: int


@dataclass(frozen=True)
class Plan:
    """What the checks have established. `shapes`: arrays to be kept -> shape of one image."""

    order: Order
    config: LabelledConfig
    vae: VaeIdentity | None
    vae_named_by_model: bool
    shards: Shards
    shapes: dict[str, tuple[int, ...]]


def check_order(order: Order) -> Plan:
    """Return all that can be refused without touching a device."""
    config = folder.read_denoiser_config(order.model)
    if isinstance(config, PixArtConfig):
        raise ValueError(
            f"{order.model} holds a PixArt, which draws from captions; use `generate` instead"
        )
    config = with_windows(config, order.window_size, order.down_factor, config.grid, order.model)
    check(config, order.protocol, order.labels, order.num_samples, order.batch_size)
    if order.shard_size < 1 or order.decode_batch_size < 1:
        raise ValueError(
            f"shard_size {order.shard_size} and decode_batch_size {order.decode_batch_size} must"
            " be at least 1"
        )
    if order.dtype not in DTYPES:
        raise unknown_name("dtype", order.dtype, DTYPES)
    check_labels(config, order)
    check_rows(config, order)
    if order.out.exists() and not order.out.is_dir():
        raise ValueError(f"{order.out} is a file; --out is a folder")
    check_kept(order.out)
    folder.require_weights(order.model)

    named = recorded_vae(order.model)
    latents = named is not None or config.in_channels not in PIXEL_CHANNELS
    vae: VaeIdentity | None = None
    shapes: dict[str, tuple[int, ...]] = {"images": (*config.image_size, config.in_channels)}
    if latents:
        vae, shapes = check_vae(config, order, named)
    elif order.vae or order.save_latents:
        flag = f"--vae {order.vae}" if order.vae else "--save_latents"
        raise ValueError(
            f"{flag} is given, but {order.model} is a model of pixels ({config.in_channels}"
            " channels); leave it out"
        )
    config = dataclasses.replace(config, dtype=order.dtype)
    shards = Shards(order.out, order.num_samples, min(order.shard_size, order.num_samples))
    return Plan(order, config, vae, named is not None, shards, shapes)


def check(
    config: LabelledConfig,
    protocol: Protocol,
    labels: tuple[int, ...],
    num_samples: int,
    batch_size: int,
) -> None:
    """Refuse what cannot be sampled, with the values and the remedy."""
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
    if not math.isfinite(protocol.cfg_scale):
        raise ValueError(f"cfg_scale is {protocol.cfg_scale}; it must be a finite number")
    if protocol.cfg_interval is not None and protocol.cfg_scale == 1.0:
        raise ValueError(
            f"cfg_interval {protocol.cfg_interval} is given, but cfg_scale 1 is no guidance; give a"
            " scale, or leave the interval out"
        )
    if protocol.cfg_scale != 1.0 and config.null_label is None:
        raise ValueError(
            f"guidance {protocol.cfg_scale} needs a null class, which this model"
            " was not trained with; use --cfg_scale 1"
        )
    protocol.function_evaluations()


def check_labels(config: LabelledConfig, order: Order) -> None:
    """The policy must exist, and have a say."""
    policy = order.label_policy
    if policy not in LABEL_POLICIES:
        raise unknown_name("label policy", policy, LABEL_POLICIES)
    if policy != "balanced" and not config.num_classes:
        raise ValueError(f"--label_policy {policy} is given, but the model is unconditional")
    if policy != "balanced" and order.labels:
        raise ValueError(
            f"--labels are repeated in their order, which --label_policy {policy} contradicts;"
            " give one of the two"
        )


def check_rows(config: LabelledConfig, order: Order) -> None:
    """Each of the devices that share an image must get the same number of rows of tokens."""
    rows, sequence = config.grid[0], order.sequence
    if sequence < 1:
        raise ValueError(f"sequence {sequence} must be at least 1")
    if sequence == 1:
        return
    mixer = mixer_class(config.mixer)
    if mixer.EXCHANGED is None:
        raise ValueError(
            f"sequence {sequence}: the mixer {config.mixer!r} of {order.model} goes through its"
            " tokens one after the other, which devices cannot share; leave --sequence out"
        )
    if rows % sequence:
        raise ValueError(
            f"sequence {sequence} does not divide the {rows} rows of tokens of {order.model};"
            " choose a divisor"
        )
    if rows // sequence % (whole := mixer.row_multiple(config)):
        raise ValueError(
            f"sequence {sequence} gives each device {rows // sequence} of the {rows} rows of"
            f" tokens of {order.model}; its mixer {config.mixer!r} needs a multiple of {whole}:"
            " choose a smaller sequence"
        )


def check_vae(
    config: LabelledConfig, order: Order, named: VaeIdentity | None
) -> tuple[VaeIdentity | None, dict[str, tuple[int, ...]]]:
    """Return the VAE that turns the model's latents into images, and what is kept of each image."""
    latent_shape = (*config.image_size, config.in_channels)
    shapes: dict[str, tuple[int, ...]] = {"latents": latent_shape} if order.save_latents else {}
    if not order.vae:
        if order.save_latents:
            return None, shapes
        wanted = f" {named.id} (sha256 {named.sha256[:12]})" if named else ""
        raise ValueError(
            f"{order.model} is a model of latents ({config.in_channels} channels): give the folder"
            f" of its VAE{wanted} with --vae, or --save_latents to get the latents"
        )
    vae_config = folder.read_config(order.vae)
    if not isinstance(vae_config, AutoencoderConfig):
        raise ValueError(f"{order.vae} holds a {vae_config.family}; --vae needs an AutoencoderKL")
    if vae_config.latent_channels != config.in_channels:
        raise ValueError(
            f"the VAE {order.vae} has latents of {vae_config.latent_channels} channels,"
            f" {order.model} makes {config.in_channels}; give the VAE it was trained with"
        )
    if vae_config.out_channels not in PIXEL_CHANNELS:
        raise ValueError(
            f"the VAE {order.vae} makes images of {vae_config.out_channels} channels; 1 or 3 can"
            " be written"
        )
    identity = vae_identity(order.vae)
    if named is not None:
        named.require_same(identity, f"the latents of {order.model}", f"--vae {order.vae}")
    height, width = (side * vae_config.downsampling for side in config.image_size)
    return identity, {"images": (height, width, vae_config.out_channels)} | shapes


# --- the request an output belongs to ---


def request_of(plan: Plan, weights_sha256: str) -> dict[str, Any]:
    """Return everything that defines the files of the output; shard size included, because shards
    of two sizes do not fit together."""
    order = plan.order
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    request = {
        "model": order.model,
        "weights_sha256": weights_sha256,
        "architecture": architecture(plan.config),
        "protocol": dataclasses.asdict(order.protocol),
        "count": order.num_samples,
        "label_policy": order.label_policy if plan.config.num_classes else None,
        "labels": order.labels or None,
        "vae": None if plan.vae is None else dataclasses.asdict(plan.vae),
        "dtype": order.dtype,
        "matmul_precision": precision or "default",
        "save_latents": order.save_latents,
        "shard_size": plan.shards.size,
    }
    return plain(request)


def check_kept(out: Path) -> None:
    """Refuse samples that no request explains: they must not be overwritten."""
    names = (RECORD, *ARRAYS.values(), GRID, FOLDER)
    if not (out / REQUEST).exists() and any((out / name).exists() for name in names):
        raise ValueError(f"{out} already holds samples; choose another --out or remove it")


def check_space(plan: Plan) -> None:
    """There must be room for the shards that are missing, and for what they are merged into."""
    shards = plan.shards
    per_image = sum(
        math.prod(shape) * (4 if name == "latents" else 1) for name, shape in plan.shapes.items()
    )
    missing = sum(stop - start for start, stop in map(shards.span, shards.pending()))
    needed = (missing + shards.count) * per_image
    what = f"{shards.count} images (in shards, and merged)"
    require_space(shards.out, needed, what, "make room or choose another --out")
