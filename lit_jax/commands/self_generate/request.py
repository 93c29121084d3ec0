"""The request that a self-generated data set belongs to, what it ends in, and what is left."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lit_jax.commands.self_generate.checks import Plan
from lit_jax.data.latents.schema import DRAWN, LatentSchema
from lit_jax.data.latents.writer import estimated_bytes
from lit_jax.data.tokenizer import load_tokenizer
from lit_jax.models.family import architecture
from lit_jax.runs.requests import plain, require_space
from lit_jax.sampling.captions import text_of_schema
from lit_jax.sampling.prompts import shortened
from lit_jax.sampling.sampler import function_evaluations

KIND = "prompt"
"""Kind of the captions that are prompts, for training."""

# Entries of a request that are for people, and the decoder of the VAE, which the grid shows only.
INFORMATION = ("model", "vae.id", "vae.sha256", "text.encoder.id")


def request_of(plan: Plan, weights_sha256: str) -> dict[str, Any]:
    """Return what decides the examples, for `request.json`."""
    config = plan.config
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    prompts = None
    if plan.prompts:
        sha256 = hashlib.sha256("\n".join(plan.prompts).encode()).hexdigest()
        prompts = {"count": len(plan.prompts), "sha256": sha256}
    request = {
        "model": config.model,
        "weights_sha256": weights_sha256,
        "architecture": architecture(plan.teacher),
        "protocol": dataclasses.asdict(plan.protocol),
        "count": config.num_samples,
        "label_policy": config.label_policy if plan.classes else None,
        "prompts": prompts,
        "text": plan.text or None,
        "vae": None if plan.vae is None else dataclasses.asdict(plan.vae),
        "latent_size": plan.latent_size,
        "dtype": config.dtype,
        "matmul_precision": precision or "default",
        "shard_size": plan.shards.size,
        "split": config.split,
    }
    return plain(request)


def schema_of(plan: Plan, request: Mapping[str, Any]) -> LatentSchema:
    """Return the schema of the data set that a request ends in."""
    teacher = plan.teacher
    down = 1 if plan.vae is None else plan.vae.downsampling
    drawn = ("weights_sha256", "architecture", "protocol", "label_policy", "prompts", "dtype")
    source = {"kind": "teacher", "path": request["model"], "name": "", "split": request["split"]}
    source |= {name: request[name] for name in drawn}
    source["network_evaluations"] = function_evaluations(plan.protocol)
    return LatentSchema(
        vae=request["vae"] or {},
        dtype="float32",
        precision=request["matmul_precision"],
        resolution=teacher.image_size[0] * down,
        latent_shape=(*teacher.image_size, teacher.in_channels),
        mirrors=False,
        count=request["count"],
        skipped=0,
        classes=plan.classes,
        captions=(KIND,) if plan.prompts else (),
        text=text_of_schema(plan.text) if plan.text else {},
        buckets=() if plan.latent_size == teacher.image_size else (plan.image_size,),
        source=source,
        crop="",
        moments=DRAWN,
    )


def check_space(plan: Plan, schema: LatentSchema, shards: list[int]) -> None:
    """Refuse a disk without room for the records of these shards; log which prompts are cut."""
    tokens = 0.0
    if plan.prompts:
        most, tokenizer = plan.config.text.max_length, load_tokenizer(plan.config.text.encoder)
        lengths = np.array([tokenizer.length(text) for text in plan.prompts])
        tokens = float(np.minimum(lengths, most).mean())
        if cut := int(np.sum(lengths > most)):
            longest = shortened(plan.prompts[int(np.argmax(lengths))])
            plan.log(f"note: {cut:,} prompts are cut to {most} tokens, among them {longest}")
    spans = [plan.shards.span(number) for number in shards]
    examples = sum(stop - start for start, stop in spans)
    needed = estimated_bytes(schema, examples, len(shards), tokens)
    require_space(plan.out, needed, f"{examples:,} examples", "make room, or draw fewer")
