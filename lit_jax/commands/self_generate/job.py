"""`python -m lit_jax self_generate`: training data that a teacher draws itself.

CLEAR trains on 10,000 samples of its own teacher (Liu et al. 2024, "CLEAR: Conv-Like Linearization
Revs Pre-Trained Diffusion Transformers Up", section 4): no images are needed, only a model, and for
text-to-image a list of prompts. What is written is a folder of latents, as `encode` writes them,
except that a sample is stored as it is (see `lit_jax.data.latents.schema`). A model of pixels is
its own latent. The same command again goes on where it was stopped, and ends in the same bytes.

Reads top-down: `self_generate` is the table of contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.checkpoints.identity import params_sha256
from lit_jax.commands.self_generate.checks import Plan, check
from lit_jax.commands.self_generate.drawing import first_images, from_labels, from_prompts
from lit_jax.commands.self_generate.request import (
    INFORMATION,
    REMEDY,
    check_space,
    pending,
    request_of,
    schema_of,
)
from lit_jax.config import MeshConfig
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.data.latents.reader import check_files
from lit_jax.data.latents.schema import (
    BUCKETS,
    NULL_CAPTION,
    REQUEST,
    SCHEMA,
    LatentSchema,
    write_array,
    write_schema,
)
from lit_jax.data.latents.writer import record_file, remove_leftovers, write_metadata, write_records
from lit_jax.diffusion.gaussian import create_process
from lit_jax.runs.hosts import (
    Log,
    as_first_process_sees,
    await_files,
    barrier,
    log_on_first_process,
)
from lit_jax.runs.requests import require_same_request
from lit_jax.sampling.captions import make_caption_encoder, write_null_caption
from lit_jax.sampling.drawing import Progress, load_sharded, save_grid
from lit_jax.sampling.shards import GRID
from lit_jax.storage import files

TEXT_PRECISION = "highest"
"""Of the text encoder's float32 products, as in `encode` unless it is told otherwise."""


def self_generate(
    config: SelfGenerateConfig, out: Path | str, log: Log = log_on_first_process
) -> Path:
    """Draw the examples of `config` into the folder `out`, which is returned.

    The same call again resumes; on a finished output it does nothing. Every process of a multi-host
    job makes the same call; `out` is a folder that all of them see. Raises ValueError before
    anything is compiled or written for whatever cannot work, an `out` of another request included;
    FloatingPointError for a sample that is not finite.
    """
    plan = check(config, Path(out).expanduser(), log)
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
    params = load_sharded(config.model, mesh)[1]
    request = request_of(plan, params_sha256(params))
    require_same_request(plan.out / REQUEST, request, REMEDY, INFORMATION)
    schema = schema_of(plan, request)
    if (plan.out / SCHEMA).is_file():
        check_files(plan.out, schema)
        log(f"nothing to do: {plan.out} holds these {schema.count:,} examples")
        return plan.out
    mine = begin(plan, schema, request)
    draw_shards(plan, schema, params, mesh, mine)
    barrier("self_generate: shards")
    if jax.process_index() == 0:
        finish(plan, schema, mesh)
    barrier("self_generate: data set")
    return plan.out


def begin(plan: Plan, schema: LatentSchema, request: Mapping[str, Any]) -> list[int]:
    """Return leaves the request in the folder; return the shards that this process has to draw."""
    count = len(plan.shards)
    missing = np.isin(np.arange(count), pending(plan, schema))
    # All processes have checked, and go by what the first has seen, before anything changes.
    left = np.flatnonzero(as_first_process_sees(missing)).tolist()
    check_space(plan, schema, left)
    if jax.process_index() == 0 and not (plan.out / REQUEST).is_file():
        files.write_json(plan.out / REQUEST, request)
    config, protocol = plan.config, plan.protocol
    height, width = plan.latent_size
    given = f" of {len(plan.prompts):,} prompts" if plan.prompts else ""
    plan.log(
        f"drawing {config.num_samples:,} examples of {height} x {width} x"
        f" {plan.teacher.in_channels}{given} from {config.model}: {protocol.sampler}, steps"
        f" {protocol.steps}, guidance {protocol.cfg_scale} on {protocol.cfg_channels} channels,"
        f" {protocol.function_evaluations()} network evaluations each; {count:,} shards,"
        f" {len(left):,} to do"
    )
    return left[jax.process_index() :: jax.process_count()]


def draw_shards(
    plan: Plan, schema: LatentSchema, params: Any, mesh: Mesh, numbers: list[int]
) -> None:
    """Draw and writes the shards of these numbers, and what guidance of a student will need."""
    encoder = None
    null = plan.out / NULL_CAPTION
    writes_null = bool(plan.text) and jax.process_index() == 0 and not null.is_file()
    if plan.text and (numbers or writes_null):
        encoder = make_caption_encoder(plan.config.text, TEXT_PRECISION)
        if writes_null:
            write_null_caption(null, encoder, plan.config.text.dtype)
    if not numbers:
        return
    spans = [plan.shards.span(number) for number in numbers]
    batches = sum(-(-(stop - start) // plan.batch_size(mesh.size)) for start, stop in spans)
    steps = batches * create_process(plan.protocol.steps).num_steps
    progress = Progress(steps, sum(stop - start for start, stop in spans), plan.log)
    if encoder is None:
        examples = from_labels(plan, params, mesh, progress)
    else:
        examples = from_prompts(plan, params, mesh, progress, encoder)
    for number, (start, stop) in zip(numbers, spans, strict=True):
        path = record_file(plan.out, schema, number, len(plan.shards))
        write_records(path, schema, examples(start, stop))
        jax.effects_barrier()  # the steps that the progress still has to hear of
        plan.log(f"shard {number + 1} of {len(plan.shards)}: {progress.speed()}")


def finish(plan: Plan, schema: LatentSchema, mesh: Mesh) -> None:
    """Describe the data set; `schema.json` is last. On process 0, after all shards."""
    spans = [plan.shards.span(number) for number in range(len(plan.shards))]
    await_files(record_file(plan.out, schema, n, len(spans)) for n in range(len(spans)))
    remove_leftovers(plan.out)
    num_bytes = write_metadata(plan.out, schema, [stop - start for start, stop in spans])
    if schema.buckets:  # all examples are in the only one
        write_array(plan.out / BUCKETS, np.zeros(schema.count, np.uint8))
    save_grid(first_images(plan, schema, mesh), plan.out / GRID)
    write_schema(plan.out, schema)
    plan.log(f"wrote {plan.out}: {schema.count:,} examples, {num_bytes / 1e9:.3f} GB")
