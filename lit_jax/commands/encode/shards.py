"""One shard of an encode job: its images, decoded by threads, through the VAE, into a file.

Beside the file of a shard, in the folder `shards`, stands a small JSON file: how many examples, and
which images were skipped and why. With it the shard is done, and is never done again.

Letters: B batch, H x W pixels, M the image and its mirror image, h x w latent pixels, L latent
channels.
"""

from __future__ import annotations

import dataclasses
import functools
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
from PIL import Image

from lit_jax.commands.encode.checks import Plan
from lit_jax.data import buckets
from lit_jax.data.crop import center_crop, fill_crop
from lit_jax.data.latents.writer import LatentExample, record_file, write_records
from lit_jax.data.sources.image_source import BrokenImage, ImageSource
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.functional import Params, with_params
from lit_jax.sampling.captions import CaptionEncoder, with_tokens
from lit_jax.storage.files import write_json

WORK = "shards"

Encoder = Callable[[np.ndarray], jax.Array]
Cut = Callable[[Image.Image, int], np.ndarray]


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """An image that is ready for the VAE: uint8 [H, W, 3]."""

    name: str
    pixels_HxWx3: np.ndarray
    label: int | None
    captions: tuple[str, ...]


Outcome = Prepared | Skipped


@dataclass(frozen=True)
class ShardResult:
    """Content of the JSON file of a shard. `num_bytes` is the size of its records, `buckets` are
    those of its examples (with buckets), `truncated` is how many captions were cut."""

    count: int
    num_bytes: int
    skipped: tuple[Skipped, ...]
    buckets: tuple[int, ...]
    truncated: int


def prepare(source: ImageSource, cut: Cut, resolution: int, index: int) -> Outcome:
    """Read, decodes and crops one image. Runs in a thread."""
    name = f"image {index}"
    try:
        name = source.name(index)
        label, captions = source.label(index), source.texts(index)
        return Prepared(name, cut(source.load(index), resolution), label, captions)
    except BrokenImage as error:
        return Skipped(index, name, str(error))


def to_bucket(image: Image.Image, resolution: int) -> np.ndarray:
    """Return an RGB image in the size of its bucket: uint8 [H, W, 3]. Raises BrokenImage without
    one."""
    try:
        size = buckets.nearest(image.height, image.width, resolution)
    except ValueError as error:
        raise BrokenImage(str(error)) from error
    return fill_crop(image, *size)


CUTS: dict[str, Cut] = {"": center_crop, "pixart": to_bucket}
"""`EncodeConfig.buckets` -> how an image is cut."""


def in_order(
    pool: Executor, function: Callable[[int], Outcome], indices: Iterable[int], ahead: int
) -> Iterator[Outcome]:
    """Yield `map` by the threads of `pool`, at most `ahead` results before the one that is asked
    for."""
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
    """Return `f(uint8 [B, H, W, 3]) -> moments float32 [B, M, h, w, 2 L]`, and B. Compiles once per
    size.

    Every local device of this host takes `device_batch_size` of the images and runs the program
    that one device alone would run, so that the result does not depend on their number.
    """
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    whole, split = PartitionSpec(), PartitionSpec("data")

    def moments(params: Params, pixels_BxHxWx3: jax.Array) -> jax.Array:
        images_BxHxWx3 = pixels_BxHxWx3.astype(jnp.float32) / 127.5 - 1.0
        views = [images_BxHxWx3]
        if mirrors:
            # The encoder is not symmetric: mirrored moments are not those of the mirror image.
            views.append(images_BxHxWx3[:, :, ::-1])
        views_BxMxHxWx3 = jnp.stack(views, axis=1)
        count = views_BxMxHxWx3.shape[:2]
        with jax.default_matmul_precision(precision):
            model = with_params(vae, params)
            found = model.encode(views_BxMxHxWx3.reshape(-1, *views_BxMxHxWx3.shape[2:]))
        return found.reshape(*count, *found.shape[1:])

    program = jax.jit(jax.shard_map(moments, mesh=mesh, in_specs=(whole, split), out_specs=split))
    placed = jax.device_put(params, NamedSharding(mesh, whole))

    def encode(pixels_BxHxWx3: np.ndarray) -> jax.Array:
        return program(placed, jax.device_put(pixels_BxHxWx3, NamedSharding(mesh, split)))

    return encode, device_batch_size * mesh.size


def encoded(
    images: Iterable[Prepared], encode: Encoder, batch_size: int
) -> Iterator[LatentExample]:
    """Yield images through the VAE, handed out in their order."""
    ready: dict[int, LatentExample] = {}
    position = 0
    for batch, moments in _one_ahead(_batches(images, batch_size), encode, batch_size):
        # Rows beyond the last image of a batch are empty.
        for (number, image), moments_Mxhxwx2L in zip(batch, np.asarray(moments), strict=False):
            ready[number] = LatentExample(image.name, moments_Mxhxwx2L, image.label, image.captions)
        while position in ready:
            yield ready.pop(position)
            position += 1


Batch = list[tuple[int, Prepared]]
"""Images of one size, with their numbers."""


def _batches(images: Iterable[Prepared], size: int) -> Iterator[Batch]:
    """Yield batches as soon as they are full; in the end those that are not, in the order of
    sizes."""
    waiting: dict[tuple[int, ...], Batch] = {}
    for number, image in enumerate(images):
        shape = image.pixels_HxWx3.shape
        batch = waiting.setdefault(shape, [])
        batch.append((number, image))
        if len(batch) == size:
            yield waiting.pop(shape)
    for shape in sorted(waiting):
        yield waiting[shape]


def _one_ahead(
    batches: Iterable[Batch], encode: Encoder, size: int
) -> Iterator[tuple[Batch, jax.Array]]:
    """Yield batches and their moments. One batch is under way while the one before is handed
    out."""
    before: tuple[Batch, jax.Array] | None = None
    for batch in batches:
        pixels_BxHxWx3 = np.zeros((size, *batch[0][1].pixels_HxWx3.shape), np.uint8)
        for row, (_, image) in enumerate(batch):
            pixels_BxHxWx3[row] = image.pixels_HxWx3
        under_way = encode(pixels_BxHxWx3)
        if before is not None:
            yield before
        before = batch, under_way
    if before is not None:
        yield before


@dataclass(frozen=True)
class Networks:
    """Networks of a host: images in batches of `batch_size`, and of captions, or None."""

    encode: Encoder
    batch_size: int
    captions: CaptionEncoder | None


def write_shard(
    plan: Plan,
    shard: int,
    prepared: Iterable[Outcome],
    networks: Networks,
    seen: Callable[[Outcome], None],
) -> ShardResult:
    """Write the records of a shard, then its JSON file. `seen` is told of every image."""
    skipped: list[Skipped] = []
    numbers: list[int] = []
    truncated = 0

    def usable() -> Iterator[Prepared]:
        for image in prepared:
            seen(image)
            if isinstance(image, Skipped):
                skipped.append(image)
            else:
                yield image

    def counted(examples: Iterable[LatentExample]) -> Iterator[LatentExample]:
        nonlocal truncated
        for example in examples:
            if schema.buckets:
                numbers.append(schema.moments_shapes.index(example.moments_Mxhxwx2L.shape))
            if networks.captions is not None:
                truncated += sum(map(networks.captions.truncated, filter(None, example.captions)))
            yield example

    schema = plan.schema(0, 0)
    path = record_file(plan.out, schema, shard, plan.num_shards)
    examples = encoded(usable(), networks.encode, networks.batch_size)
    if networks.captions is not None:
        examples = with_tokens(examples, networks.captions)
    count = write_records(path, schema, counted(examples))
    size = path.stat().st_size
    result = ShardResult(count, size, tuple(skipped), tuple(numbers), truncated)
    write_json(result_file(plan, shard), dataclasses.asdict(result))
    return result


def result_file(plan: Plan, shard: int) -> Path:
    return plan.out / WORK / f"{shard:05d}.json"


def read_result(plan: Plan, shard: int) -> ShardResult | None:
    """Return what became of a shard; None when it is not done: no JSON file, or not its records."""
    path = result_file(plan, shard)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        skipped = tuple(Skipped(**image) for image in content["skipped"])
        numbers = tuple(content["buckets"])
        result = ShardResult(
            content["count"], content["num_bytes"], skipped, numbers, content["truncated"]
        )
    except (ValueError, KeyError, TypeError):  # a machine that lost its power while writing
        return None
    records = record_file(plan.out, plan.schema(0, 0), shard, plan.num_shards)
    whole = records.is_file() and records.stat().st_size == result.num_bytes
    return result if whole else None


def preparer(plan: Plan) -> Callable[[int], Outcome]:
    """Return `prepare` for the images of this job."""
    cut = CUTS[plan.config.buckets]
    return functools.partial(prepare, plan.source, cut, plan.config.resolution)
