"""The examples of a self-generated data set, from class labels or from prompts.

Letters: N examples, B those of a batch, h x w pixels of the teacher's input, L its channels; n
tokens of a prompt, D channels of their features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
from jax.sharding import Mesh

from lit_jax.commands.self_generate.checks import Plan
from lit_jax.data.latents.reader import decode_record, open_records
from lit_jax.data.latents.schema import LatentSchema
from lit_jax.data.latents.writer import LatentExample
from lit_jax.models.functional import null_caption
from lit_jax.sampling.captions import CaptionEncoder
from lit_jax.sampling.decode import decode_in_batches
from lit_jax.sampling.grids import GRID_COUNT
from lit_jax.sampling.labels import assign_labels
from lit_jax.sampling.sampler import (
    LabelBatches,
    StepProgress,
    make_sampler,
    prompt_keys,
    require_finite,
    text_conditions,
)

Examples = Callable[[int, int], Iterator[LatentExample]]
"""(start, stop) -> examples start .. stop - 1."""

REMEDY = "another cfg_scale, or dtype float32"


def from_labels(plan: Plan, params: Any, mesh: Mesh, steps: StepProgress) -> Examples:
    """Return examples of a teacher on class labels, or of an unconditional one."""
    config, teacher = plan.config, cast(Any, plan.teacher)
    label_N = assign_labels(teacher, (), config.num_samples, config.label_policy, config.seed)
    draw = make_sampler(teacher, plan.protocol, mesh, progress=steps.callback)
    batch_size = plan.batch_size(mesh.size)
    drawer = LabelBatches(
        draw,
        params,
        None,
        config.seed,
        label_N,
        teacher.null_label,
        batch_size,
        mesh,
        steps,
    )

    def examples(start: int, stop: int) -> Iterator[LatentExample]:
        for first, x_BxhxwxL, _ in drawer.batches(start, stop):
            require_finite(x_BxhxwxL, _names(first, x_BxhxwxL), "sampler", REMEDY)
            for index, x_hxwxL in enumerate(x_BxhxwxL, first):
                label = None if label_N is None else int(label_N[index])
                yield LatentExample(name_of(index), x_hxwxL[None], label)

    return examples


def from_prompts(
    plan: Plan, params: Any, mesh: Mesh, steps: StepProgress, encoder: CaptionEncoder
) -> Examples:
    """Return examples of a teacher on captions, with the features of their prompts."""
    config, teacher = plan.config, cast(Any, plan.teacher)
    uncond = uncond_of(plan, params, encoder)
    draw = make_sampler(teacher, plan.protocol, mesh, plan.latent_size, progress=steps.callback)
    batch_size = plan.batch_size(mesh.size)
    numbers = plan.numbers()
    size = plan.image_size if teacher.micro_condition else None

    def examples(start: int, stop: int) -> Iterator[LatentExample]:
        for first in range(start, stop, batch_size):
            indices = range(first, min(first + batch_size, stop))
            tokens = encoder.tokens([plan.prompt(index) for index in indices])
            # Filled with copies that are dropped, so that nothing is compiled twice.
            filling = batch_size - len(indices)
            rows = [*indices, *[indices[-1]] * filling]
            cond = text_conditions(
                tokens + [tokens[-1]] * filling, config.text.max_length, uncond, size=size
            )
            keys_B = prompt_keys(
                config.seed, [plan.prompt(row) for row in rows], [numbers[row] for row in rows]
            )
            x_BxhxwxL = np.asarray(draw(params, None, keys_B, *cond)[0])[: len(indices)]
            steps.batch_done()
            require_finite(x_BxhxwxL, _names(first, x_BxhxwxL), "sampler", REMEDY)
            for index, x_hxwxL, tokens_nxD in zip(indices, x_BxhxwxL, tokens, strict=True):
                prompt = plan.prompt(index)
                yield LatentExample(
                    name_of(index), x_hxwxL[None], captions=[prompt], tokens=[tokens_nxD]
                )

    return examples


def _names(first: int, array_Bx: np.ndarray) -> list[str]:
    return [f"example {index}" for index in range(first, first + len(array_Bx))]


def name_of(index: int) -> str:
    return f"{index:08d}"


def uncond_of(
    plan: Plan, params: Any, encoder: CaptionEncoder
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return features [max_length, D] of the unconditional text, and their mask: the teacher's
    null caption, or else what the encoder makes of the empty text; None without guidance."""
    if plan.config.cfg_scale == 1.0:
        return None
    length = plan.config.text.max_length
    mask_L = encoder.tokenizer([""], length)[1][0]
    if plan.model.config.model_max_length is None:  # type: ignore[union-attr]
        return encoder.null_caption(), mask_L
    return np.asarray(null_caption(plan.teacher, params), np.float32)[:length], mask_L


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
    if plan.vae_folder is None:
        return x_NxhxwxL
    vae: Any = plan.vae_folder.config
    params = plan.vae_folder.params(mesh)
    return decode_in_batches(vae, params, x_NxhxwxL, mesh, mesh.size)
