"""Checks of the data of a run: pixels or latents, labels or captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.checkpoints.identity import TextEncoderIdentity, VaeIdentity
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.config import DataConfig, TrainConfig, from_mapping
from lit_jax.data import pipeline
from lit_jax.data.latents.schema import (
    DRAWN,
    LatentSchema,
    is_latent_folder,
    read_null_caption,
    read_schema,
)
from lit_jax.data.pixels import require_image_shape
from lit_jax.data.registry import LATENTS, dataset_kind, open_images
from lit_jax.data.sources.image_source import ImageSource
from lit_jax.data.stream import BatchStream
from lit_jax.models.registry import DenoiserConfig, LabelledConfig, family_of
from lit_jax.training.batch import StartOf, latents, pixels


@dataclass(frozen=True)
class DataInfo:
    """Data of a run. `vae_folder` is None for pixels; `text_encoder` and `null_caption_LxC`, the
    float32 encoding of the empty prompt, are None without captions; `images` is None for latents.
    `start_of` returns x_start of a batch."""

    vae_folder: ModelFolder | None = None
    start_of: StartOf = pixels
    text_encoder: TextEncoderIdentity | None = None
    null_caption_LxC: np.ndarray | None = None
    images: ImageSource | None = None

    @property
    def vae(self) -> VaeIdentity | None:
        """Identity of the VAE, None for pixels."""
        return None if self.vae_folder is None else self.vae_folder.vae_identity


def check_data(config: TrainConfig, student: DenoiserConfig) -> DataInfo:
    """Check that the model fits the images or latents of the data set, and its labels or captions.

    Raises ValueError when it does not, or when the autoencoder is another one.
    """
    if family_of(student).condition == "caption":
        return check_captioned(config, student)
    if config.data.caption_weights:
        raise ValueError(
            f"data.caption_weights is {config.data.caption_weights}, but {config.model.name} is"
            " conditioned on class labels; leave it empty"
        )
    return check_labelled(config, student)


def check_labelled(config: TrainConfig, student: Any) -> DataInfo:
    """Return the data of a model with class labels: images or latents of its size, its classes."""
    data, kind = config.data, dataset_kind(config.data)
    info, classes = check_latents(data, student) if kind == LATENTS else check_pixels(data, student)
    if student.num_classes not in (0, classes):
        remedy = f"use {classes}, or 0 for unconditional" if classes else "use 0 (unconditional)"
        raise ValueError(
            f"data set {data.name!r} has {classes or 'no'} classes, the model"
            f" num_classes={student.num_classes}; {remedy}"
        )
    return info


def check_latents(data: DataConfig, student: LabelledConfig) -> tuple[DataInfo, int]:
    """Return a folder of latents of the model's shape, and its number of classes."""
    path = Path(data.data_dir, data.name)
    schema = read_schema(path)
    if schema.buckets:
        raise ValueError(
            f"the latents in {path} have {len(schema.buckets)} aspect ratios, a"
            f" {student.family} takes one; encode with buckets=''"
        )
    shape, expected = schema.latent_shape, (*student.image_size, student.in_channels)
    if schema.vae:
        vae = check_vae(data.vae, schema, path)
        info = DataInfo(vae, start_of_latents(schema, vae))
        what = f"latents of images of {schema.resolution} x {schema.resolution} pixels,"
    else:  # drawn by a model of pixels
        require_no_vae(data)
        info, what = DataInfo(), "images"
    if shape != expected:
        raise ValueError(
            f"data set {data.name!r} has {what} {shape}, the model takes {expected};"
            " set model.overrides input_size and in_channels"
        )
    return info, len(schema.classes)


def check_pixels(data: DataConfig, student: LabelledConfig) -> tuple[DataInfo, int]:
    """Return images that can be cropped to the model's size, and their number of classes."""
    require_no_vae(data)
    images = open_images(data, dataset_kind(data))
    require_image_shape(images, (*student.image_size, student.in_channels), data.name)
    return DataInfo(images=images), len(images.classes)


def require_no_vae(data: DataConfig) -> None:
    """Refuse a VAE for data that are pixels."""
    if data.vae:
        raise ValueError(
            f"data.vae is {data.vae!r}, but data set {data.name!r} holds pixels; leave it empty, or"
            " encode the images first"
        )


def start_of_latents(schema: LatentSchema, vae: ModelFolder) -> StartOf:
    """Return the function that makes x_start: latents of images are drawn anew in every step,
    samples of a model stay as they are."""
    return pixels if schema.moments == DRAWN else latents(vae.vae_identity.scaling_factor)


def check_captioned(config: TrainConfig, student: Any) -> DataInfo:
    """Return data for a model on captions: latents with the features of captions."""
    data, path = config.data, Path(config.data.data_dir, config.data.name)
    if not is_latent_folder(path) or not read_schema(path).text:
        raise ValueError(
            f"{config.model.name} is conditioned on captions, but {path} holds no features of a"
            " text encoder; encode images and captions with `text` set (configs/encode_t2i.py)"
        )
    if (reason := family_of(student).untrained(student)) is not None:
        raise ValueError(reason)
    schema = read_schema(path)
    vae = check_vae(data.vae, schema, path)
    found = {
        "image_size": schema.latent_shape[:2],
        "in_channels": vae.vae_identity.latent_channels,
        "caption_channels": schema.text["width"],
        "model_max_length": schema.text["max_length"],
    }
    differing = [
        f"{name} {value}, the model {getattr(student, name)}"
        for name, value in found.items()
        if getattr(student, name) != value
    ]
    if differing:
        raise ValueError(
            f"the examples in {path} have {'; '.join(differing)}; set model.overrides"
            " (input_size for image_size)"
        )
    weights = data.caption_weights
    if weights and len(weights) != len(schema.captions):
        raise ValueError(
            f"data.caption_weights are {weights}, but {path} has {len(schema.captions)} kinds of"
            f" captions: {', '.join(schema.captions)}; give a weight for each"
        )
    encoder = from_mapping(TextEncoderIdentity, schema.text["encoder"], f"{path}: text encoder")
    start_of = start_of_latents(schema, vae)
    return DataInfo(vae, start_of, encoder, read_null_caption(path, schema))


def check_vae(vae_dir: str, schema: LatentSchema, path: Path) -> ModelFolder:
    """Return the autoencoder of the config, which must be the one that made the latents."""
    stored = from_mapping(VaeIdentity, schema.vae, f"{path}: vae")
    if not vae_dir:
        raise ValueError(
            f"data.vae is empty; give the model folder of the VAE that made {path}: {stored.id}"
            f" (sha256 {stored.sha256[:12]})"
        )
    vae = ModelFolder(vae_dir, expect="AutoencoderKL", flag="data.vae")
    stored.require_same(vae.vae_identity, f"the latents in {path}", f"data.vae {vae_dir}")
    return vae


def check_recorded(model: ModelFolder, info: DataInfo, what: str) -> None:
    """Refuse a teacher or a source of weights of other latents or text features, as far as its
    folder records them."""
    if model.vae is not None and info.vae is not None:
        model.vae.require_same(info.vae, f"the latents of {what} {model}", "that of the data")
    if model.text_encoder is not None and info.text_encoder is not None:
        model.text_encoder.require_same(
            info.text_encoder, f"the captions of {what} {model}", "that of the data"
        )


def open_data(
    config: TrainConfig,
    student: DenoiserConfig,
    info: DataInfo,
    batch_size: int,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int = 0,
) -> BatchStream:
    """Return the training data of a run in batches of this size, with what the model is conditioned
    on."""
    captions = family_of(student).condition == "caption"
    labels = getattr(student, "num_classes", 0) > 0  # a field of denoisers on labels
    weights: dict[str, float] = {}
    if captions and config.data.caption_weights:
        kinds = read_schema(Path(config.data.data_dir, config.data.name)).captions
        weights = dict(zip(kinds, config.data.caption_weights, strict=True))
    return pipeline.make_train_iterator(
        config.data.name,
        config.data.data_dir,
        config.data.split,
        batch_size,
        config.seed,
        kind=config.data.kind,
        images=info.images,
        image_shape=(*student.image_size, student.in_channels),
        shard_index=shard_index,
        shard_count=shard_count,
        flip=config.data.flip,
        labels=labels,
        captions=captions,
        caption_weights=weights,
        workers=workers,
    )
