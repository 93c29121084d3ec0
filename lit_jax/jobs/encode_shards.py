"""One shard of an encode job: its images, decoded by threads, through the VAE, into a file.

Beside the file of a shard, in the folder `shards`, stands a small JSON file: how many examples, and
which images were skipped and why. With it the shard is done, and is never done again.

Letters: B batch, S pixels along a side, M the image and its mirror image, h x w latent pixels, L
latent channels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lit_jax.config import AutoencoderConfig
from lit_jax.data.crop import center_crop
from lit_jax.data.image_source import BrokenImage, ImageSource
from lit_jax.data.latent_writer import LatentExample, record_file, write_records
from lit_jax.files import write_json
from lit_jax.jobs.encode_checks import Plan
from lit_jax.models.zoo import Params, with_params

WORK = "shards"

Encoder = Callable[[np.ndarray], jax.Array]


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """An image that is ready for the VAE: uint8 [S, S, 3]."""

    name: str
    pixels_SxSx3: np.ndarray
    label: int | None
    caption: str | None


Outcome = Prepared | Skipped


@dataclass(frozen=True)
class ShardResult:
    """What the JSON file of a shard says. `num_bytes` is the size of its records."""

    count: int
    num_bytes: int
    skipped: tuple[Skipped, ...]


def prepare(source: ImageSource, size: int, index: int) -> Outcome:
    """Reads, decodes and crops one image. Runs in a thread."""
    name = f"image {index}"
    try:
        name = source.name(index)
        label, caption = source.label(index), source.caption(index)
        return Prepared(name, center_crop(source.load(index), size), label, caption)
    except BrokenImage as error:
        return Skipped(index, name, str(error))


def in_order(
    pool: Executor, function: Callable[[int], Outcome], indices: Iterable[int], ahead: int
) -> Iterator[Outcome]:
    """`map` by the threads of `pool`, at most `ahead` results before the one that is asked for."""
    waiting: deque[Future[Outcome]] = deque()
    for index in indices:
        waiting.append(pool.submit(function, index))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def make_encoder(
    vae: AutoencoderConfig, params: Params, mirrors: bool, precision: str, device_batch_size: int
) -> tuple[Encoder, int]:
    """`f(uint8 [B, S, S, 3]) -> moments float32 [B, M, h, w, 2 L]`, and B.

    Every local device of this host takes `device_batch_size` of the images and runs the program
    that one device alone would run, so that the result does not depend on their number.
    """
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    whole, split = PartitionSpec(), PartitionSpec("data")

    def moments(params: Params, pixels_BxSxSx3: jax.Array) -> jax.Array:
        images_BxSxSx3 = pixels_BxSxSx3.astype(jnp.float32) / 127.5 - 1.0
        views = [images_BxSxSx3]
        if mirrors:
            # The encoder is not symmetric: mirrored moments are not those of the mirror image.
            views.append(images_BxSxSx3[:, :, ::-1])
        views_BxMxSxSx3 = jnp.stack(views, axis=1)
        count = views_BxMxSxSx3.shape[:2]
        with jax.default_matmul_precision(precision):
            model = with_params(vae, params)
            found = model.encode(views_BxMxSxSx3.reshape(-1, *views_BxMxSxSx3.shape[2:]))
        return found.reshape(*count, *found.shape[1:])

    program = jax.jit(jax.shard_map(moments, mesh=mesh, in_specs=(whole, split), out_specs=split))
    placed = jax.device_put(params, NamedSharding(mesh, whole))

    def encode(pixels_BxSxSx3: np.ndarray) -> jax.Array:
        return program(placed, jax.device_put(pixels_BxSxSx3, NamedSharding(mesh, split)))

    return encode, device_batch_size * mesh.size


def encoded(
    images: Iterable[Prepared], encode: Encoder, batch_size: int
) -> Iterator[LatentExample]:
    """Images through the VAE in batches of one size. One batch is under way while the one before
    is handed out."""
    before: tuple[list[Prepared], jax.Array] | None = None
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, batch_size)):
        pixels_BxSxSx3 = np.zeros((batch_size, *batch[0].pixels_SxSx3.shape), np.uint8)
        for row, image in enumerate(batch):
            pixels_BxSxSx3[row] = image.pixels_SxSx3
        under_way = encode(pixels_BxSxSx3)
        if before is not None:
            yield from _examples(*before)
        before = batch, under_way
    if before is not None:
        yield from _examples(*before)


def _examples(batch: list[Prepared], moments: jax.Array) -> Iterator[LatentExample]:
    moments_BxMxhxwx2L = np.asarray(moments)
    for image, moments_Mxhxwx2L in zip(batch, moments_BxMxhxwx2L, strict=False):
        yield LatentExample(image.name, moments_Mxhxwx2L, image.label, image.caption)


def write_shard(
    plan: Plan,
    shard: int,
    prepared: Iterable[Outcome],
    encode: Encoder,
    batch_size: int,
    seen: Callable[[Outcome], None],
) -> ShardResult:
    """Writes the records of a shard, then its JSON file. `seen` is told of every image."""
    skipped: list[Skipped] = []

    def usable() -> Iterator[Prepared]:
        for image in prepared:
            seen(image)
            if isinstance(image, Skipped):
                skipped.append(image)
            else:
                yield image

    schema = plan.schema(0, 0)
    path = record_file(plan.out, schema, shard, plan.num_shards)
    count = write_records(path, schema, encoded(usable(), encode, batch_size))
    result = ShardResult(count, path.stat().st_size, tuple(skipped))
    write_json(result_file(plan, shard), dataclasses.asdict(result))
    return result


def result_file(plan: Plan, shard: int) -> Path:
    return plan.out / WORK / f"{shard:05d}.json"


def read_result(plan: Plan, shard: int) -> ShardResult | None:
    """What became of a shard; None when it is not done: no JSON file, or not its records."""
    path = result_file(plan, shard)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        skipped = tuple(Skipped(**image) for image in content["skipped"])
        result = ShardResult(content["count"], content["num_bytes"], skipped)
    except (ValueError, KeyError, TypeError):  # a machine that lost its power while writing
        return None
    records = record_file(plan.out, plan.schema(0, 0), shard, plan.num_shards)
    whole = records.is_file() and records.stat().st_size == result.num_bytes
    return result if whole else None


def preparer(plan: Plan) -> Callable[[int], Outcome]:
    """`prepare` for the images of this job."""
    return functools.partial(prepare, plan.source, plan.config.resolution)
