"""Checks of a sample job, before anything is compiled or written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.config import unknown_name
from lit_jax.config.sample import SampleConfig
from lit_jax.models.attention import mixer_class
from lit_jax.models.family import architecture
from lit_jax.models.registry import LabelledConfig
from lit_jax.runs.output import Output
from lit_jax.runs.requests import plain, require_space
from lit_jax.sampling.decode import PIXEL_CHANNELS
from lit_jax.sampling.labels import LABEL_POLICIES
from lit_jax.sampling.sampler import check_protocol
from lit_jax.sampling.shards import Shards
from lit_jax.sampling.windows import with_windows

INFORMATION = ("model", "vae.id")
"""Entries of a request that may differ: the same weights may lie in another folder."""


@dataclass(frozen=True)
class Job:
    """Result of the checks. `shapes`: arrays to be kept -> shape of one image."""

    config: SampleConfig
    model: ModelFolder
    network: LabelledConfig
    vae: ModelFolder | None
    shapes: dict[str, tuple[int, ...]]

    @property
    def out(self) -> Path:
        return Path(self.config.out).expanduser()

    @property
    def shards(self) -> Shards:
        count = self.config.num_samples
        return Shards(count, min(self.config.shard_size, count))

    def request(self) -> dict[str, Any]:
        """Return the settings that define the files of the output; shard size included, because
        shards of two sizes do not fit together."""
        config = self.config
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        request = {
            "model": config.model,
            "weights_sha256": self.model.sha256,
            "architecture": architecture(self.network),
            "protocol": dataclasses.asdict(config.protocol),
            "count": config.num_samples,
            "label_policy": config.label_policy if self.network.num_classes else None,
            "labels": config.labels or None,
            "vae": None if self.vae is None else dataclasses.asdict(self.vae.vae_identity),
            "dtype": config.dtype,
            "matmul_precision": precision or "default",
            "save_latents": config.save_latents,
            "shard_size": self.shards.size,
        }
        return plain(request)


def check(config: SampleConfig) -> Job:
    """Check everything that needs no device. Raises ValueError for a job that cannot work."""
    model = ModelFolder(config.model, expect="label", flag="--model")
    network: Any = model.config
    network = with_windows(
        network, config.window_size, config.down_factor, network.grid, config.model
    )
    check_protocol(config.protocol, network)
    check_labels(config, network)
    check_rows(config, network)
    vae, shapes = check_vae(config, model)
    return Job(config, model, dataclasses.replace(network, dtype=config.dtype), vae, shapes)


def check_labels(config: SampleConfig, network: LabelledConfig) -> None:
    """Refuse labels that the model does not have, and a policy without effect."""
    labels, policy = config.labels, config.label_policy
    if labels and not network.num_classes:
        raise ValueError("--labels are given, but the model is unconditional")
    if wrong := [label for label in labels if not 0 <= label < network.num_classes]:
        raise ValueError(f"labels {wrong} are not in 0..{network.num_classes - 1}")
    if policy not in LABEL_POLICIES:
        raise unknown_name("label policy", policy, LABEL_POLICIES)
    if policy != "balanced" and not network.num_classes:
        raise ValueError(f"--label_policy {policy} is given, but the model is unconditional")
    if policy != "balanced" and labels:
        raise ValueError(
            f"--labels are repeated in their order, which --label_policy {policy} contradicts;"
            " give one of the two"
        )


def check_rows(config: SampleConfig, network: LabelledConfig) -> None:
    """Refuse a number of devices that cannot share the rows of an image."""
    rows, sequence = network.grid[0], config.sequence
    if sequence == 1:
        return
    mixer = mixer_class(network.mixer)
    if mixer.EXCHANGED is None:
        raise ValueError(
            f"sequence {sequence}: the mixer {network.mixer!r} of {config.model} scans its tokens"
            " one after the other, which devices cannot share; leave --sequence out"
        )
    if rows % sequence:
        raise ValueError(
            f"sequence {sequence} does not divide the {rows} rows of tokens of {config.model};"
            " choose a divisor"
        )
    if rows // sequence % (whole := mixer.row_multiple(network)):
        raise ValueError(
            f"sequence {sequence} gives each device {rows // sequence} of the {rows} rows of"
            f" tokens of {config.model}; its mixer {network.mixer!r} needs a multiple of {whole}:"
            " choose a smaller sequence"
        )


def check_vae(
    config: SampleConfig, model: ModelFolder
) -> tuple[ModelFolder | None, dict[str, tuple[int, ...]]]:
    """Return the VAE of a model of latents, and the arrays to be kept -> shape of one image."""
    network: Any = model.config
    own_shape = (*network.image_size, network.in_channels)
    if model.vae is None and network.in_channels in PIXEL_CHANNELS:
        if config.vae or config.save_latents:
            flag = f"--vae {config.vae}" if config.vae else "--save_latents"
            raise ValueError(
                f"{flag} is given, but {config.model} is a model of pixels ({network.in_channels}"
                " channels); leave it out"
            )
        return None, {"images": own_shape}
    shapes: dict[str, tuple[int, ...]] = {"latents": own_shape} if config.save_latents else {}
    if not config.vae:
        if config.save_latents:
            return None, shapes
        which = f" {model.vae.id} (sha256 {model.vae.sha256[:12]})" if model.vae else ""
        raise ValueError(
            f"{config.model} is a model of latents ({network.in_channels} channels): give the"
            f" folder of its VAE{which} with --vae, or --save_latents to get the latents"
        )
    vae = ModelFolder(config.vae, expect="AutoencoderKL", flag="--vae")
    model.require_companions(vae=vae)
    decoder: Any = vae.config
    if decoder.out_channels not in PIXEL_CHANNELS:
        raise ValueError(
            f"the VAE {config.vae} makes images of {decoder.out_channels} channels; 1 or 3 can be"
            " written"
        )
    height, width = (side * decoder.downsampling for side in network.image_size)
    return vae, {"images": (height, width, decoder.out_channels)} | shapes


def check_space(job: Job, out: Output, missing: list[int]) -> None:
    """Refuse a disk without room for the missing shards and the files they are merged into."""
    shards = job.shards
    per_image = sum(
        math.prod(shape) * (4 if name == "latents" else 1) for name, shape in job.shapes.items()
    )
    images = sum(stop - start for start, stop in map(shards.span, missing))
    what = f"{shards.count} images (in shards, and merged)"
    needed = (images + shards.count) * per_image
    require_space(out.path, needed, what, "make room or choose another --out")
