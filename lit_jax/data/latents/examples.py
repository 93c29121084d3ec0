"""Latents as training examples, with random choices and one stream for every size of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from lit_jax.config import unknown_name
from lit_jax.data import transforms
from lit_jax.data.examples import LABEL, Examples, SizeStream, seeds
from lit_jax.data.latents import reader as latents
from lit_jax.data.latents.schema import DRAWN, LatentSchema, read_buckets
from lit_jax.data.mixture import Reshuffled


def latent_examples(
    folder: Path,
    schema: LatentSchema,
    split: str,
    seed: int,
    flip: bool,
    captions: bool,
    caption_weights: Mapping[str, float],
) -> Examples:
    """Return the latents in a folder, one stream for every bucket that is not empty.

    Raises ValueError for mirror images and captions that are not there, and for files that are
    missing, damaged or not those of the schema.
    """
    weights = weights_of_kinds(caption_weights, schema, folder)
    text = bool(schema.text) and captions
    if flip and schema.text:
        raise ValueError(
            f"data.flip is True, but the captions in {folder} would not fit mirror images ('left'"
            " and 'right'); set data.flip=False"
        )
    if flip and not schema.mirrors:
        raise ValueError(
            f"data.flip is True, but the latents in {folder} have no mirror images; set"
            " data.flip=False, or encode with mirrors"
        )
    records = latents.open_records(folder, schema, split)
    buckets_N = read_buckets(folder, schema)
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    if schema.classes:
        arrays |= LABEL
    if text:
        length, width = schema.text["max_length"], schema.text["width"]
        arrays["tokens"] = (length, width), np.dtype(schema.text["dtype"])
        arrays["mask"] = (length,), np.dtype(np.int8)
    sizes = []
    for bucket in np.unique(buckets_N).tolist():
        drawn = seeds(seed, bucket) if schema.buckets else seeds(seed)
        rows = np.flatnonzero(buckets_N == bucket)
        shape = schema.moments_shapes[bucket]
        latents.check_record(records[int(rows[0])], schema, shape, folder)
        if schema.buckets:
            order = grain.MapDataset.source(Reshuffled(records, rows, drawn.order))
        else:
            order = grain.MapDataset.source(records).shuffle(seed=drawn.order).repeat()
        mirror, caption = drawn.mirror if flip else None, drawn.caption if text else None
        dataset = latents.examples(order, schema, shape, latents.Draws(mirror, caption, weights))
        name = "image" if schema.moments == DRAWN else "moments"
        found = {name: (shape[1:], np.dtype(schema.dtype))}
        sizes.append(SizeStream(dataset, found | arrays, len(rows)))
    identity = {"data schema sha256": schema.identity_sha256()}
    return Examples(sizes, transforms.selected, identity)


def weights_of_kinds(
    given: Mapping[str, float], schema: LatentSchema, folder: Path
) -> tuple[float, ...]:
    """Return the weight of every kind of captions of a data set. Raises ValueError for a kind that
    it does not have, and for weights that are negative, or all zero."""
    kinds = schema.captions if schema.text else ()
    if given and not kinds:
        raise ValueError(
            f"caption_weights are given, but {folder} holds no features of captions; encode it with"
            " text, or leave them out"
        )
    for kind, weight in given.items():
        if kind not in kinds:
            raise unknown_name(f"kind of captions in {folder}", kind, kinds)
        if not 0 <= weight < np.inf:
            raise ValueError(f"caption_weights gives {kind!r} {weight}; it must be at least 0")
    if given and not any(given.values()):
        raise ValueError(f"caption_weights are all 0: {dict(given)}; one must be more")
    return tuple(float(given[kind]) if kind in given else float(not given) for kind in kinds)
