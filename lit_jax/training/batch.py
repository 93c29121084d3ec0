"""Conversion of a batch of data in a training step: the clean x_start and the condition.

B batch, H x W x C image or latent, h x w x L latent, T caption tokens, D channels of the text
encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lit_jax.models.autoencoder.model import sample_latents
from lit_jax.models.conditions import TextCondition, drop_captions
from lit_jax.models.functional import parameter
from lit_jax.models.registry import DenoiserConfig, family_of, roles_of

Batch = dict[str, jax.Array]
StartOf = Callable[[Batch, jax.Array], jax.Array]
ConditionOf = Callable[[Batch, jax.Array, Any], Any]

# Splitting the key of a step in three takes its numbers 0, 1 and 2 (t, noise, dropout).
LATENT_KEY = 3


def pixels(batch: Batch, key: jax.Array) -> jax.Array:
    """Return x_start of a batch of images: the images, float32 [B, H, W, C] in [-1, 1]. Latents
    that a model has drawn come under the same name, in the scale that it sees."""
    return batch["image"]


def latents(scaling_factor: float) -> StartOf:
    """Return x_start of a batch of "moments" [B, h, w, 2 L]: a scaled latent, float32 [B, h, w, L],
    drawn anew in every step from the Gaussian that the autoencoder gave for the image."""

    def draw(batch: Batch, key: jax.Array) -> jax.Array:
        return sample_latents(batch["moments"], jax.random.fold_in(key, LATENT_KEY), scaling_factor)

    return draw


def labels(null_label: int | None, dropout: float) -> ConditionOf:
    """Return the class labels int [B] of a batch, each replaced by the null class with probability
    `dropout`; None for a batch without labels."""

    def condition(batch: Batch, key: jax.Array, params: Any) -> jax.Array | None:
        label_B = batch.get("label")
        if label_B is None or null_label is None:
            return label_B
        drop_B = jax.random.uniform(key, label_B.shape) < dropout
        return jnp.where(drop_B, null_label, label_B)

    return condition


def captions(null_caption: str, dropout: float) -> ConditionOf:
    """Return the captions of a batch, "tokens" [B, T, D] and "mask" [B, T], each replaced by the
    student's null caption, the parameter at that path, with probability `dropout`. The mask stays
    that of the caption, as in the official training code."""

    def condition(batch: Batch, key: jax.Array, params: Any) -> TextCondition:
        cond = TextCondition(batch["tokens"], batch["mask"])
        if not dropout:
            return cond
        drop_B = jax.random.uniform(key, batch["mask"].shape[:1]) < dropout
        return drop_captions(cond, drop_B, parameter(params, null_caption))

    return condition


def condition_of(config: DenoiserConfig) -> ConditionOf:
    """Return the condition of a denoiser, dropped as often as its configuration gives."""
    if family_of(config).condition == "label":
        return labels(config.null_label, config.class_dropout_prob)  # type: ignore[union-attr]
    return captions(roles_of(config).null_caption, config.class_dropout_prob)
