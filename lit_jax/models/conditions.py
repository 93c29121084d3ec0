"""Condition of a text-to-image network.

B batch, L caption tokens, C channels of the text encoder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lit_jax.models.pixart.config import PixArtConfig, caption_tokens
from lit_jax.models.registry import family_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextCondition:
    """A batch of captions: a pytree, so that it passes through jit, scan and sharding as it is.

    tokens        float [B, L, C], output of the text encoder
    mask          [B, L], 1 (True) for the tokens to attend to; any pattern, not only a prefix.
                  None: all of them
    img_hw        float [B, 2], height and width of the original image in pixels, and
    aspect_ratio  float [B, 1], height over width; both for models with `micro_condition` only

    The values of a mask are checked where they are numbers: each must be 0 or 1, and no caption may
    be masked altogether (softmax over nothing). Inside jit they are not known; there a caption
    without a single token is attended to as nothing, and the cross-attention adds its output bias
    alone.
    """

    tokens: Any
    mask: Any = None
    img_hw: Any = None
    aspect_ratio: Any = None


def drop_captions(
    cond: TextCondition, drop_B: jax.Array, null_caption_LxC: jax.Array
) -> TextCondition:
    """Return `cond` with the tokens of every example where `drop_B` is true replaced by the null
    caption.

    The mask stays that of the original caption, as in the official training and guidance code: the
    null caption is cut to the length of the caption it stands for. Raises ValueError when the null
    caption has another shape than the captions.
    """
    shape = jnp.shape(cond.tokens)
    if jnp.shape(null_caption_LxC) != shape[1:]:
        raise ValueError(
            f"null caption of shape {jnp.shape(null_caption_LxC)} for captions of shape"
            f" {shape}; it must hold one [tokens, channels] = {list(shape[1:])}"
        )
    if jnp.shape(drop_B) != shape[:1]:
        raise ValueError(
            f"drop of shape {jnp.shape(drop_B)} for captions of shape {shape}; it must hold one"
            f" value per caption, [{shape[0]}]"
        )
    tokens = jnp.asarray(cond.tokens)
    drop_Bx1x1 = jnp.asarray(drop_B, bool)[:, None, None]
    null = jnp.asarray(null_caption_LxC).astype(tokens.dtype)
    return dataclasses.replace(cond, tokens=jnp.where(drop_Bx1x1, null, tokens))


def check_condition(cond: Any, config: PixArtConfig, batch: int) -> None:
    """Raise ValueError unless `cond` is a TextCondition for `batch` images of this model."""
    if not isinstance(cond, TextCondition):
        raise ValueError(
            f"cond is {type(cond).__name__}; this model takes a TextCondition(tokens, mask)"
        )
    shape = jnp.shape(cond.tokens)
    expected = f"[{batch}, tokens, {config.caption_channels}]"
    if len(shape) != 3 or shape[0] != batch or shape[2] != config.caption_channels or not shape[1]:
        raise ValueError(
            f"caption tokens of shape {shape} for {batch} image(s) and caption_channels"
            f" {config.caption_channels}; they must be {expected}"
        )
    if cond.mask is not None:
        if jnp.shape(cond.mask) != shape[:2]:
            raise ValueError(
                f"caption mask of shape {jnp.shape(cond.mask)} for caption tokens of shape {shape};"
                f" it must be {list(shape[:2])}"
            )
        if not isinstance(cond.mask, jax.core.Tracer):
            _check_mask(np.asarray(cond.mask))
    _check_micro(cond, config, batch)


def _check_mask(mask_BxL: np.ndarray) -> None:
    """Check a mask of concrete values; a traced one is not checked."""
    wrong = mask_BxL[(mask_BxL != 0) & (mask_BxL != 1)]
    if wrong.size:
        raise ValueError(
            f"caption mask holds {wrong[0]}; it must be 1 for tokens to attend to and 0 for the"
            " others (not a bias that is added to the logits)"
        )
    empty = np.flatnonzero(~mask_BxL.astype(bool).any(axis=1))
    if empty.size:
        raise ValueError(
            f"caption {empty[0]} of {len(mask_BxL)} has an all-zero mask: softmax over nothing."
            " Keep at least one token; an empty prompt has its end-of-text token"
        )


def _check_micro(cond: TextCondition, config: PixArtConfig, batch: int) -> None:
    for name, width in (("img_hw", 2), ("aspect_ratio", 1)):
        value = getattr(cond, name)
        if (value is not None) != config.micro_condition:
            state = "given" if value is not None else "missing"
            raise ValueError(
                f"{name} is {state}, but the model has micro_condition={config.micro_condition}"
            )
        if value is not None and jnp.shape(value) != (batch, width):
            raise ValueError(
                f"{name} of shape {jnp.shape(value)} for {batch} image(s); it must be"
                f" [{batch}, {width}]"
            )


def abstract_condition(config: Any, batch: int) -> Any:
    """Return the shapes and dtypes of the condition of `batch` images: labels, captions of the full
    length, or None for an unconditional model."""
    if family_of(config).condition == "label":
        return jax.ShapeDtypeStruct((batch,), jnp.int32) if config.num_classes else None
    shape = (batch, caption_tokens(config), config.caption_channels)
    sizes = [jax.ShapeDtypeStruct((batch, n), jnp.float32) for n in (2, 1)]
    return TextCondition(
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape[:2], jnp.bool_),
        *(sizes if config.micro_condition else ()),
    )
