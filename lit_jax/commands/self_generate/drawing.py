"""The examples of a self-generated data set, from class labels or from prompts.

Letters: N examples, B those of a batch, h x w pixels of the teacher's input, L its channels; n
tokens of a prompt, D channels of their features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.commands.sample.job import require_finite
from lit_jax.commands.self_generate.checks import Plan
from lit_jax.data.latents.reader import decode_record, open_records
from lit_jax.data.latents.schema import LatentSchema
from lit_jax.data.latents.writer import LatentExample
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import LabelledConfig
from lit_jax.sampling.captions import CaptionEncoder
from lit_jax.sampling.drawing import Drawer, Protocol, decoder, load_vae, make_sampler
from lit_jax.sampling.labels import assign_labels
from lit_jax.sampling.shards import GRID_COUNT
from lit_jax.sampling.text_drawing import (
    TextProtocol,
    make_text_sampler,
    prompt_keys,
    text_conditions,
)

Examples = Callable[[int, int], Iterator[LatentExample]]
"""(start, stop) -> examples start .. stop - 1."""

StepDone = Callable[[int], None]


def from_labels(plan: Plan, params: Any, mesh: Mesh, progress: StepDone) -> Examples:
    """Return examples of a teacher on class labels, or of an unconditional one."""
    config, teacher = plan.config, plan.teacher
    assert isinstance(teacher, LabelledConfig) and isinstance(plan.protocol, Protocol)
    label_N = assign_labels(teacher, (), config.num_samples, config.label_policy, config.seed)
    draw = make_sampler(teacher, plan.protocol, mesh, progress)
    batch_size = plan.batch_size(mesh.size)
    drawer = Drawer(draw, params, None, label_N, batch_size, mesh)

    def examples(start: int, stop: int) -> Iterator[LatentExample]:
        for first, x_BxhxwxL, _ in drawer.batches(start, stop):
            require_finite(x_BxhxwxL, first, label_N, "the sampler")
            for index, x_hxwxL in enumerate(x_BxhxwxL, first):
                label = None if label_N is None else int(label_N[index])
                yield LatentExample(name_of(index), x_hxwxL[None], label)

    return examples


def from_prompts(
    plan: Plan, params: Any, mesh: Mesh, progress: StepDone, encoder: CaptionEncoder
) -> Examples:
    """Return examples of a teacher on captions, with the features of their prompts."""
    config, teacher = plan.config, plan.teacher
    assert isinstance(teacher, PixArtConfig) and isinstance(plan.protocol, TextProtocol)
    away = away_of(plan, params, encoder)
    draw = make_text_sampler(teacher, plan.protocol, mesh, plan.latent_size, progress)
    batch_size = plan.batch_size(mesh.size)
    numbers = plan.numbers()
    size = plan.image_size if teacher.micro_condition else None

    def examples(start: int, stop: int) -> Iterator[LatentExample]:
        for first in range(start, stop, batch_size):
            indices = range(first, min(first + batch_size, stop))
            tokens = encoder.tokens([plan.prompt(index) for index in indices])
            # Filled with copies nobody keeps, so that nothing is compiled twice.
            filling = batch_size - len(indices)
            rows = [*indices, *[indices[-1]] * filling]
            cond = text_conditions(
                tokens + [tokens[-1]] * filling, config.text.max_length, away, size=size
            )
            keys_B = prompt_keys(
                config.seed, [plan.prompt(row) for row in rows], [numbers[row] for row in rows]
            )
            x_BxhxwxL = np.asarray(draw(params, keys_B, *cond))[: len(indices)]
            require_finite(x_BxhxwxL, first, None, "the sampler")
            for index, x_hxwxL, tokens_nxD in zip(indices, x_BxhxwxL, tokens, strict=True):
                prompt = plan.prompt(index)
                yield LatentExample(
                    name_of(index), x_hxwxL[None], captions=[prompt], tokens=[tokens_nxD]
                )

    return examples


def name_of(index: int) -> str:
    return f"{index:08d}"


def away_of(
    plan: Plan, params: Any, encoder: CaptionEncoder
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return features [max_length, D] that guidance leads away from, and their mask: the teacher's
    null caption, or else what the encoder makes of the empty text; None without guidance."""
    if plan.config.cfg_scale == 1.0:
        return None
    assert isinstance(plan.teacher, PixArtConfig)
    length = plan.config.text.max_length
    mask_L = encoder.tokenizer([""], length)[1][0]
    if plan.teacher.model_max_length is None:
        return encoder.null_caption(), mask_L
    return np.asarray(params["y_embedder"]["null_caption"], np.float32)[:length], mask_L


# --- what a person looks at ---


def first_images(plan: Plan, schema: LatentSchema, mesh: Mesh) -> np.ndarray:
    """Return the first examples on disk as images float32 [N, H, W, C], decoded when there is a
    VAE."""
    records = open_records(plan.out, schema, schema.split)
    shape = schema.moments_shapes[0]
    x_NxhxwxL = np.stack(
        [
            decode_record(records[index], schema, shape, captions=False)["moments"][0]
            for index in range(min(GRID_COUNT, schema.count))
        ]
    )
    if not plan.config.vae:
        return x_NxhxwxL
    vae, params = load_vae(plan.config.vae, mesh)
    program = jax.jit(decoder(vae, mesh, 1), out_shardings=sharding.replicated(mesh))
    images = []
    for first in range(0, len(x_NxhxwxL), mesh.size):
        index_B = np.minimum(np.arange(first, first + mesh.size), len(x_NxhxwxL) - 1)
        images.append(np.asarray(program(params, x_NxhxwxL[index_B])))
    return np.concatenate(images)[: len(x_NxhxwxL)]
