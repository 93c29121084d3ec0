"""`python -m lit_jax self_generate`: training data that a teacher draws itself.

CLEAR trains on 10,000 samples of its own teacher (Liu et al. 2024, "CLEAR: Conv-Like Linearization
Revs Pre-Trained Diffusion Transformers Up", section 4): no images are needed, only a model, and for
text-to-image a list of prompts. What is written is a folder of latents, as `encode` writes them,
except that a sample is stored as it is (see `lit_jax.data.latents.schema`). A model of pixels is
its own latent. The same command again goes on where it was stopped, and ends in the same bytes.

Reads top-down: `self_generate` is the table of contents.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.commands.self_generate.checks import Plan, check
from lit_jax.commands.self_generate.drawing import first_images, from_labels, from_prompts
from lit_jax.commands.self_generate.request import (
    INFORMATION,
    check_space,
    request_of,
    schema_of,
)
from lit_jax.config import MeshConfig
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.data.latents.reader import check_files
from lit_jax.data.latents.schema import (
    BUCKETS,
    NULL_CAPTION,
    SCHEMA,
    LatentSchema,
    write_array,
    write_schema,
)
from lit_jax.data.latents.writer import (
    record_file,
    write_metadata,
    write_records,
)
from lit_jax.runs.hosts import Log, await_files, log_on_first_process, share
from lit_jax.runs.output import Output
from lit_jax.runs.progress import Progress
from lit_jax.sampling.captions import make_caption_encoder, write_null_caption
from lit_jax.sampling.grids import GRID, save_grid
from lit_jax.sampling.sampler import StepProgress, function_evaluations

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
    request = request_of(plan, plan.model.sha256)
    schema = schema_of(plan, request)
    with Output.open(plan.out, request, SCHEMA, ignore=INFORMATION, log=log) as output:
        if output.done:
            check_files(plan.out, schema)
            log(f"nothing to do: {plan.out} holds these {schema.count:,} examples")
            return plan.out
        count = len(plan.shards)
        missing = output.missing(
            range(count), lambda n: record_file(plan.out, schema, n, count).is_file()
        )
        check_space(plan, schema, missing)
        announce(plan, missing)
        output.begin()
        draw_shards(plan, schema, mesh, share(missing))
        output.close(lambda: finish(plan, schema, mesh))
    return plan.out


def announce(plan: Plan, missing: list[int]) -> None:
    """Log the request."""
    config, protocol = plan.config, plan.protocol
    height, width = plan.latent_size
    given = f" of {len(plan.prompts):,} prompts" if plan.prompts else ""
    plan.log(
        f"drawing {config.num_samples:,} examples of {height} x {width} x"
        f" {plan.teacher.in_channels}{given} from {config.model}: {protocol.sampler}, steps"
        f" {protocol.steps}, guidance {protocol.cfg_scale} on {protocol.cfg_channels} channels,"
        f" {function_evaluations(protocol)} network evaluations each; {len(plan.shards):,} shards,"
        f" {len(missing):,} to do"
    )


def draw_shards(plan: Plan, schema: LatentSchema, mesh: Mesh, numbers: list[int]) -> None:
    """Draw and write the shards of these numbers, and what guidance of a student will need."""
    encoder = None
    null = plan.out / NULL_CAPTION
    writes_null = bool(plan.text) and jax.process_index() == 0 and not null.is_file()
    if plan.text and (numbers or writes_null):
        encoder = make_caption_encoder(plan.config.text, TEXT_PRECISION)
        if writes_null:
            write_null_caption(null, encoder, plan.config.text.dtype)
    if not numbers:
        return
    params = plan.model.params(mesh)
    spans = [plan.shards.span(number) for number in numbers]
    size = plan.batch_size(mesh.size)
    batches = sum(-(-(stop - start) // size) for start, stop in spans)
    with Progress("drawing", batches * size, "example", plan.log) as progress:
        steps = StepProgress(progress, plan.teacher, plan.protocol, size)
        if encoder is None:
            examples = from_labels(plan, params, mesh, steps)
        else:
            examples = from_prompts(plan, params, mesh, steps, encoder)
        for number, (start, stop) in zip(numbers, spans, strict=True):
            path = record_file(plan.out, schema, number, len(plan.shards))
            write_records(path, schema, examples(start, stop))
            plan.log(f"shard {number + 1} of {len(plan.shards)}: {progress.speed()}")


def finish(plan: Plan, schema: LatentSchema, mesh: Mesh) -> None:
    """Describe the data set; `schema.json` is last. On process 0, after all shards."""
    spans = [plan.shards.span(number) for number in range(len(plan.shards))]
    await_files(record_file(plan.out, schema, n, len(spans)) for n in range(len(spans)))
    num_bytes = write_metadata(plan.out, schema, [stop - start for start, stop in spans])
    if schema.buckets:  # all examples are in the only one
        write_array(plan.out / BUCKETS, np.zeros(schema.count, np.uint8))
    save_grid(first_images(plan, schema, mesh), plan.out / GRID)
    write_schema(plan.out, schema)
    plan.log(f"wrote {plan.out}: {schema.count:,} examples, {num_bytes / 1e9:.3f} GB")
