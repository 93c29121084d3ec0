"""Checks of an encode job before anything is compiled or written, and its request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.checkpoints.identity import VaeIdentity
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import check_local, check_parents
from lit_jax.config import EncodeConfig, SourceConfig
from lit_jax.data import buckets
from lit_jax.data.latents.schema import LatentSchema
from lit_jax.data.latents.writer import estimated_bytes
from lit_jax.data.registry import open_source
from lit_jax.data.sources.image_source import BrokenImage, ImageSource
from lit_jax.data.tokenizer import load_tokenizer
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.runs.hosts import Log
from lit_jax.runs.requests import require_space
from lit_jax.sampling.captions import text_of_schema, text_request

# Of the config: what decides the bytes that are written. The rest may change between attempts.
REQUEST_FIELDS = (
    *("resolution", "dtype", "mirrors", "buckets", "precision", "device_batch_size", "shard_size"),
)

# Where things lie, and what their folders are called, may change: hashes decide.
PLACES = ("source.path", "source.name", "vae.id", "vae.sha256", "text.encoder.id")

# A VAE takes sides that are multiples of its downsampling, and models cut latents into patches.
PATCH = 2

# Images whose captions say how many tokens there will be.
_SAMPLED = 200


@dataclass(frozen=True)
class Plan:
    """Result of the checks."""

    config: EncodeConfig
    out: Path
    source: ImageSource
    folder: ModelFolder
    vae: AutoencoderConfig
    request: Mapping[str, Any]
    log: Log

    @property
    def num_images(self) -> int:
        return len(self.source)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.config.shard_size)

    def shard_range(self, shard: int) -> range:
        """Return the images of a shard."""
        size = self.config.shard_size
        return range(shard * size, min((shard + 1) * size, self.num_images))

    def schema(self, count: int, skipped: int) -> LatentSchema:
        config, side = self.config, self.config.resolution // self.vae.downsampling
        text: dict[str, Any] = {}
        if config.text.encoder:
            text = text_of_schema(self.request["text"])
        return LatentSchema(
            vae=self.request["vae"],
            dtype=config.dtype,
            precision=config.precision,
            resolution=config.resolution,
            latent_shape=(side, side, self.vae.latent_channels),
            mirrors=config.mirrors,
            count=count,
            skipped=skipped,
            classes=self.source.classes,
            captions=self.source.captions,
            text=text,
            buckets=buckets.sizes(config.resolution) if config.buckets else (),
            source=self.request["source"],
            crop="fill" if config.buckets else "adm",
        )


def check(config: EncodeConfig, out: Path, log: Log) -> Plan:
    """Check everything that needs no device.

    Raises ValueError for a model folder that is no VAE or no text encoder, a resolution the VAE
    cannot take, images that are not there, and an `out` that holds something else.
    """
    folder = check_vae(config)
    check_local(out, "--out")
    check_parents(out)
    check_apart(out, config.source)
    source = open_source(config.source)
    request = make_request(config, source, folder.vae_identity)
    vae: Any = folder.config
    return Plan(config, out, source, folder, vae, request, log)


def check_vae(config: EncodeConfig) -> ModelFolder:
    """Open the VAE, which must take RGB images of the resolution of the config."""
    folder = ModelFolder(config.vae, expect="AutoencoderKL", flag="vae")
    vae: Any = folder.config
    if vae.in_channels != 3:
        raise ValueError(f"vae {config.vae} takes {vae.in_channels} channels; images have 3")
    if config.buckets:
        buckets.sizes(config.resolution, PATCH * vae.downsampling)
    if rest := config.resolution % vae.downsampling:
        below = config.resolution - rest
        near = f"{below} or {below + vae.downsampling}" if below else f"{vae.downsampling}"
        raise ValueError(
            f"resolution {config.resolution} is not a multiple of {vae.downsampling}, the"
            f" downsampling of {config.vae}; take {near}"
        )
    return folder


def check_apart(out: Path, source: SourceConfig) -> None:
    """Refuse an output among the images, which the next attempt would list with them."""
    images = Path(source.path).expanduser().resolve()
    if source.kind != "tfds" and out.resolve().is_relative_to(images):
        raise ValueError(f"--out {out} lies in the folder of the images, {images}; choose another")


def make_request(
    config: EncodeConfig, source: ImageSource, identity: VaeIdentity
) -> dict[str, Any]:
    """Return what decides the bytes that are written, for `request.json`."""
    listing = {"images": len(source), "sha256": source.listing_sha256()}
    request = {
        "source": dataclasses.asdict(config.source) | listing,
        "vae": dataclasses.asdict(identity),
        **{name: getattr(config, name) for name in REQUEST_FIELDS},
    }
    if config.text.encoder:
        encoder = ModelFolder(config.text.encoder, expect="T5", flag="text.encoder")
        request["text"] = text_request(config.text, encoder)
    return request


def check_disk_space(plan: Plan, shards: list[int]) -> None:
    """Raise ValueError when the records of `shards` will not fit on the disk of `out`."""
    images = sum(len(plan.shard_range(shard)) for shard in shards)
    needed = estimated_bytes(plan.schema(0, 0), images, len(shards), tokens_per_image(plan))
    remedy = "make room, or set dtype float16 or mirrors False"
    require_space(plan.out, needed, f"{images:,} images", remedy)


def tokens_per_image(plan: Plan) -> float:
    """Return tokens that will be stored for an image, all kinds of captions together: the mean of
    some images, spread evenly."""
    text = plan.config.text
    if not text.encoder:
        return 0.0
    texts: list[str] = []
    step = -(-plan.num_images // _SAMPLED)
    sampled = range(0, plan.num_images, step)
    for index in sampled:
        try:
            texts += filter(None, plan.source.texts(index))
        except BrokenImage:
            continue
    if not texts:
        return 0.0
    mask_NxL = load_tokenizer(text.encoder)(texts, text.max_length)[1]
    return float(np.sum(mask_NxL)) / len(sampled)
