"""From prompts to pixels in three phases, each with one network in memory.

Letters: B images of a batch, h x w latent pixels, H x W pixels, C channels, L caption tokens, D
channels of the text encoder.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax.commands.generate.checks import Plan
from lit_jax.data.transforms import to_uint8
from lit_jax.models import functional
from lit_jax.models.conditions import TextCondition
from lit_jax.runs.hosts import Log
from lit_jax.runs.output import Output
from lit_jax.runs.progress import Progress
from lit_jax.sampling.decode import decode_in_batches
from lit_jax.sampling.prompts import Prompt, shortened
from lit_jax.sampling.sampler import (
    StepProgress,
    make_sampler,
    prompt_keys,
    require_finite,
    text_conditions,
)
from lit_jax.sampling.text_features import load_text_encoder
from lit_jax.sampling.windows import with_averages

LATENTS = "latents"
UNCOND = "text/away"
"""The part with the features of the unconditional text."""


@dataclass(frozen=True)
class Images:
    """All images of a job, prompt by prompt, cut into batches of one size. What is drawn together
    does not depend on what is there already, so that a resumed job draws the same bits."""

    plan: Plan
    batch_size: int

    def __len__(self) -> int:
        return len(self.plan.prompts) * self.plan.config.num_images

    @property
    def batches(self) -> range:
        return range(-(-len(self) // self.batch_size))

    def members(self, batch: int) -> list[tuple[int, int]]:
        """Return (prompt, number) of the images of a batch; the last one may have fewer."""
        first = batch * self.batch_size
        images = range(first, min(first + self.batch_size, len(self)))
        return [divmod(i, self.plan.config.num_images) for i in images]

    def filled(self, batch: int) -> list[tuple[int, int]]:
        """Return `members`, filled to the size of a batch with copies that are dropped, so that
        nothing is compiled twice."""
        members = self.members(batch)
        return members + [members[-1]] * (self.batch_size - len(members))

    def prompt(self, prompt: int) -> Prompt:
        return self.plan.prompts[prompt]

    def file(self, prompt: int, number: int) -> str:
        return self.plan.prompts[prompt].images[number]

    def part(self, batch: int) -> str:
        """Return the part with the latents of a batch, which differ in their last bits in another
        batch."""
        return f"{LATENTS}/{batch:06d}-of-{self.batch_size}"


def text_part(prompt: int) -> str:
    return f"text/{prompt:06d}"


# --- text encoder: prompts -> features ---


def encode_prompts(plan: Plan, numbers: list[int], uncond: bool, output: Output, log: Log) -> None:
    """Write the features of the prompts with these numbers, and those of the unconditional text.

    One text at a time: its features are the same whatever is asked for beside it. Of a prompt only
    the tokens that are attended to are kept.
    """
    if not numbers and not uncond:
        return
    encoder = load_text_encoder(plan.folders.text, plan.dtype)
    with Progress("text encoder", len(numbers) + uncond, "text", log) as progress:
        for number in numbers:
            text = plan.prompts[number].text
            features_1xLxD, mask_1xL = encoder.features([text], plan.max_length, 1)
            require_finite(features_1xLxD, [shortened(text)], "text encoder", remedy(plan))
            output.save(text_part(number), tokens=features_1xLxD[0, mask_1xL[0] != 0])
            progress.advance()
        if uncond:
            assert plan.uncond_text is not None
            features_1xLxD, mask_1xL = encoder.features([plan.uncond_text], plan.max_length, 1)
            require_finite(
                features_1xLxD, [shortened(plan.uncond_text)], "text encoder", remedy(plan)
            )
            output.save(UNCOND, tokens=features_1xLxD[0], mask=mask_1xL[0])
            progress.advance()
    release(encoder.params)


# --- denoiser: features -> latents ---


def draw_batches(images: Images, numbers: list[int], mesh: Mesh, output: Output, log: Log) -> None:
    """Write the latents of the batches with these numbers."""
    if not numbers:
        return
    plan = images.plan
    params = plan.folders.model.params(mesh, plan.dtype)
    params = with_averages(plan.model, params, mesh)
    uncond = _uncond(plan, params, output)
    count = len(numbers) * images.batch_size
    with Progress("denoiser", count, "image", log) as progress:
        steps = StepProgress(progress, plan.model, plan.protocol, images.batch_size)
        draw = make_sampler(
            plan.model, plan.protocol, mesh, plan.latent_size, progress=steps.callback
        )
        for number in numbers:
            cond, uncond_cond = conditions(images, number, uncond, output)
            members = images.filled(number)
            texts = [images.prompt(prompt).text for prompt, _ in members]
            keys = prompt_keys(plan.protocol.seed, texts, [k for _, k in members])
            latents_BxhxwxC = np.asarray(draw(params, None, keys, cond, uncond_cond)[0])
            latents_BxhxwxC = latents_BxhxwxC[: len(images.members(number))]
            require_finite(latents_BxhxwxC, names(images, number), "sampler", remedy(plan))
            output.save(images.part(number), latents=latents_BxhxwxC, devices=devices())
            steps.batch_done()
    release(params)


def _uncond(plan: Plan, params: Any, output: Output) -> tuple[np.ndarray, np.ndarray] | None:
    """Return tokens [L, D] of the unconditional text and their own mask [L]; None without
    guidance."""
    if not plan.guides:
        return None
    if plan.uncond_text is not None:
        piece = output.load(UNCOND)
        return piece["tokens"], piece["mask"]
    stored_LxD = np.asarray(functional.null_caption(plan.model, params), np.float32)
    return stored_LxD[: plan.max_length], plan.tokenizer([""], plan.max_length)[1][0]


def conditions(
    images: Images, batch: int, uncond: tuple[np.ndarray, np.ndarray] | None, output: Output
) -> tuple[TextCondition, TextCondition]:
    """Return the condition of the images of a batch, and the unconditional one."""
    plan = images.plan
    texts = [output.load(text_part(prompt))["tokens"] for prompt, _ in images.filled(batch)]
    size = plan.size if plan.model.micro_condition else None
    return text_conditions(texts, plan.max_length, uncond, plan.null_mask == "own", size)


# --- VAE: latents -> images ---


def decode_batches(
    images: Images, numbers: list[int], mesh: Mesh, output: Output, log: Log
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, images uint8 [B, H, W, C]) of the batches with these numbers."""
    if not numbers:
        return
    plan = images.plan
    params = plan.folders.vae.params(mesh)
    decode = _tiled(plan, params) if plan.config.tile else _whole(plan, params, mesh)
    count = sum(len(images.members(number)) for number in numbers)
    with Progress("VAE", count, "image", log) as progress:
        for number in numbers:
            latents_BxhxwxC = output.load(images.part(number))["latents"]
            images_BxHxWxC = decode(latents_BxhxwxC, images.batch_size)
            require_finite(images_BxHxWxC, names(images, number), "VAE", remedy(plan))
            yield number, to_uint8(images_BxHxWxC)
            for _ in images_BxHxWxC:
                progress.advance()
    release(params)


def _whole(plan: Plan, params: Any, mesh: Mesh) -> Any:
    """Return the function with which every device decodes its images one by one."""

    def decode(latents_BxhxwxC: np.ndarray, size: int) -> np.ndarray:
        return decode_in_batches(plan.vae, params, latents_BxhxwxC, mesh, size)

    return decode


def _tiled(plan: Plan, params: Any) -> Any:
    """Return the function with which one device decodes all images, tile by tile."""
    device = jax.local_devices()[0]
    model = functional.with_params(plan.vae, jax.device_put(params, device))

    def decode(latents_BxhxwxC: np.ndarray, size: int) -> np.ndarray:
        plain = np.asarray(model.unscaled(latents_BxhxwxC))
        return np.concatenate([model.decode_tiled(latent[None]) for latent in plain])

    return decode


# --- all phases ---


def names(images: Images, batch: int) -> list[str]:
    """Return names of the images of a batch, for messages."""
    return [
        f"image {number} of {shortened(images.prompt(prompt).text)}"
        for prompt, number in images.members(batch)
    ]


def remedy(plan: Plan) -> str:
    return "a lower --cfg_scale" if plan.dtype == "float32" else "--dtype float32"


def devices() -> np.ndarray:
    """Return the devices of this process, as an array of text."""
    return np.array(f"{jax.local_device_count()} x {jax.devices()[0].device_kind}")


def release(params: Any) -> None:
    """Free the memory of a network at once, whatever still refers to it."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    gc.collect()
