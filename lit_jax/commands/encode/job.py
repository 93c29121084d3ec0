"""`python -m lit_jax encode`: images to moments of a VAE, as a TFDS data set.

Captions become features of a text encoder beside them, if asked for. The images are cut into
shards of `shard_size`, in the order of their listing. Hosts take shards
that no other host takes, and every finished shard is kept, so that a run that was killed goes on
where it was, also with another number of hosts, and ends in the same bytes. What is in the folder
is described in `lit_jax.data.latents.schema`.

Reads top-down: `encode` is the table of contents.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from lit_jax.commands.encode.checks import PLACES, Plan, check, check_disk_space
from lit_jax.commands.encode.shards import (
    Networks,
    ShardResult,
    Skipped,
    in_order,
    make_encoder,
    preparer,
    read_result,
    write_shard,
)
from lit_jax.config import EncodeConfig
from lit_jax.data.latents.reader import check_files
from lit_jax.data.latents.schema import (
    BUCKETS,
    NULL_CAPTION,
    SCHEMA,
    SKIPPED,
    read_schema,
    write_array,
    write_schema,
)
from lit_jax.data.latents.writer import write_metadata
from lit_jax.runs.hosts import SECONDS_TO_APPEAR, Log, log_on_first_process, share
from lit_jax.runs.output import Output
from lit_jax.runs.progress import Progress
from lit_jax.sampling.captions import CaptionEncoder, make_caption_encoder, write_null_caption
from lit_jax.storage import files


def encode(config: EncodeConfig, out: Path | str, log: Log | None = None) -> Path:
    """Encode all images of `config.source` into the folder `out`, which is returned.

    The same call again goes on with the shards that are missing, and does nothing when none are.
    Raises ValueError for a request that cannot be met or differs from the one in `out`, before
    anything is compiled or written; and once more images than allowed could not be used.
    """
    plan = check(config, Path(out), log or log_on_first_process)
    with Output.open(plan.out, plan.request, SCHEMA, ignore=PLACES, log=plan.log) as output:
        if output.done:
            report_finished(plan)
            return plan.out
        results, missing = begin(plan, output)
        with warnings.catch_warnings():
            # Of Pillow's: transparency that is dropped on purpose, metadata, very large images.
            warnings.filterwarnings("ignore", module="PIL")
            encode_shards(plan, results, share(missing))
        output.close(lambda: finish(plan))
    return plan.out


def report_finished(plan: Plan) -> None:
    """Log that there is nothing to do."""
    schema = read_schema(plan.out)
    check_files(plan.out, schema)
    plan.log(
        f"nothing to do: {plan.out} holds the latents of {schema.count:,} images"
        f" ({schema.skipped:,} skipped)"
    )


def begin(plan: Plan, output: Output) -> tuple[dict[int, ShardResult], list[int]]:
    """Write the request; return the results of the finished shards, and the missing shards."""
    results = finished(plan)
    missing = output.missing(range(plan.num_shards), results.__contains__)
    results = {shard: result for shard, result in results.items() if shard not in missing}
    require_few_skipped(plan, results)
    check_disk_space(plan, missing)
    output.begin()
    side, text = plan.config.resolution, plan.config.text.encoder
    plan.log(
        f"encoding {plan.num_images:,} images of {plan.config.source.path} at"
        f" {'about ' if plan.config.buckets else ''}{side} x {side} with {plan.config.vae}"
        f"{f' and captions with {text}' if text else ''}:"
        f" {plan.num_shards:,} shards, {len(missing):,} to do"
    )
    return results, missing


def encode_shards(plan: Plan, results: dict[int, ShardResult], mine: list[int]) -> None:
    """Add the shards `mine` to `results`; threads decode some batches ahead."""
    captions = load_caption_encoder(plan, bool(mine))
    if not mine:
        return
    settings = plan.config
    params = plan.folder.params()
    encode_batch, batch_size = make_encoder(
        plan.vae, params, settings.mirrors, settings.precision, settings.device_batch_size
    )
    networks = Networks(encode_batch, batch_size, captions)
    total = sum(len(plan.shard_range(shard)) for shard in mine)
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="decode")
    try:
        indices = itertools.chain.from_iterable(map(plan.shard_range, mine))
        ahead = 2 * networks.batch_size + settings.workers
        prepared = in_order(pool, preparer(plan), indices, ahead)
        with Progress("encoding", total, "image", plan.log) as progress:
            for shard in mine:
                part = itertools.islice(prepared, len(plan.shard_range(shard)))
                results[shard] = write_shard(
                    plan, shard, part, networks, lambda image: progress.advance()
                )
                # Once there are too many, the rest is not worth the hours.
                require_few_skipped(plan, results)
                skipped = sum(len(results[one].skipped) for one in mine if one in results)
                plan.log(
                    f"shard {shard + 1} of {plan.num_shards}: {skipped:,} skipped,"
                    f" {progress.speed()}"
                )
    finally:
        pool.shutdown(cancel_futures=True)


def load_caption_encoder(plan: Plan, has_shards: bool) -> CaptionEncoder | None:
    """Return the text encoder of the config, None without one or without need. Process 0 writes
    what it makes of the empty caption."""
    if not plan.config.text.encoder:
        return None
    null = plan.out / NULL_CAPTION
    writes = jax.process_index() == 0 and not null.is_file()
    if not has_shards and not writes:
        return None
    encoder = make_caption_encoder(plan.config.text, plan.config.precision)
    if writes:
        write_null_caption(null, encoder, plan.config.text.dtype)
    return encoder


def finished(plan: Plan) -> dict[int, ShardResult]:
    """Return the shards that are done, by any host, and what became of them."""
    found = {shard: read_result(plan, shard) for shard in range(plan.num_shards)}
    return {shard: result for shard, result in found.items() if result is not None}


def require_few_skipped(plan: Plan, results: dict[int, ShardResult]) -> None:
    """Raise ValueError, with the list written, when more images than allowed were skipped: the
    fraction of all images, rounded up, but never all of them."""
    skipped = [image for shard in sorted(results) for image in results[shard].skipped]
    allowed = math.ceil(plan.config.max_skipped_fraction * plan.num_images)
    if len(skipped) <= min(allowed, plan.num_images - 1):
        return
    write_skipped(plan, skipped)
    reason, times = Counter(image.reason for image in skipped).most_common(1)[0]
    raise ValueError(
        f"{len(skipped):,} images of {plan.num_images:,} cannot be used so far, allowed are"
        f" {allowed:,} (max_skipped_fraction {plan.config.max_skipped_fraction}); {times:,} times:"
        f" {reason!r}. {plan.out / SKIPPED} lists them. Repair the images and encode into another"
        " folder, or allow more and run the same command again"
    )


def write_skipped(plan: Plan, skipped: list[Skipped]) -> None:
    """Write `skipped.json`: the images by name, with the reason, and the count of each reason."""
    reasons = Counter(image.reason for image in skipped)
    content = {
        "count": len(skipped),
        "reasons": {reason: reasons[reason] for reason in sorted(reasons)},
        "images": [dataclasses.asdict(image) for image in skipped],
    }
    files.write_json(plan.out / SKIPPED, content)


def finish(plan: Plan) -> None:
    """Describe the data set; `schema.json` is last. On process 0, after all shards."""
    results = finished(plan)
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while len(results) < plan.num_shards and time.monotonic() < deadline:
        time.sleep(1.0)
        results = finished(plan)
    if missing := plan.num_shards - len(results):
        raise ValueError(
            f"{missing} shards of other hosts are not in {plan.out}; all hosts must share this"
            " folder. The same command encodes what is missing"
        )
    require_few_skipped(plan, results)
    skipped = [image for shard in sorted(results) for image in results[shard].skipped]
    counts = [results[shard].count for shard in range(plan.num_shards)]
    schema = plan.schema(sum(counts), len(skipped))
    num_bytes = write_metadata(plan.out, schema, counts)
    write_skipped(plan, skipped)
    if schema.buckets:
        numbers = [number for shard in sorted(results) for number in results[shard].buckets]
        write_array(plan.out / BUCKETS, np.asarray(numbers, np.uint8))
    write_schema(plan.out, schema)
    list_place = f", listed in {plan.out / SKIPPED}" if skipped else ""
    plan.log(
        f"wrote {plan.out}: {schema.count:,} images, {num_bytes / 1e9:.3f} GB;"
        f" {len(skipped):,} skipped{list_place}"
    )
    if plan.config.text.encoder:
        truncated = sum(result.truncated for result in results.values())
        plan.log(f"{truncated:,} captions were cut to {plan.config.text.max_length} tokens")
