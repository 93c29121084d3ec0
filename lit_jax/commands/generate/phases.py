"""From prompts to pixels in three phases, each with one network in memory.

Letters: B images of a batch, h x w latent pixels, H x W pixels, C channels, L caption tokens, D
channels of the text encoder.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.checkpoints import folder
from lit_jax.commands.generate.checks import Plan, shortened
from lit_jax.commands.generate.output import Pieces
from lit_jax.data.transforms import to_uint8
from lit_jax.diffusion.gaussian import create_process
from lit_jax.models import functional
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.conditions import TextCondition
from lit_jax.runs.hosts import Log
from lit_jax.runs.progress import Bar
from lit_jax.sampling.drawing import decoder, load_sharded
from lit_jax.sampling.prompts import Prompt
from lit_jax.sampling.text_drawing import make_text_sampler, prompt_keys, text_conditions
from lit_jax.sampling.text_features import load_text_encoder
from lit_jax.sampling.windows import with_averages

AWAY = "text/away"
"""The piece with the features that guidance leads away from."""


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
        """Return `members`, filled to the size of a batch with copies nobody keeps, so that nothing
        is compiled twice."""
        members = self.members(batch)
        return members + [members[-1]] * (self.batch_size - len(members))

    def prompt(self, prompt: int) -> Prompt:
        return self.plan.prompts[prompt]

    def file(self, prompt: int, number: int) -> str:
        return self.plan.prompts[prompt].images[number]

    def piece(self, batch: int) -> str:
        """Return the name of the latents of a batch, which differ in their last bits in another
        batch."""
        return f"latents/{batch:06d}-of-{self.batch_size}"


def text_piece(prompt: int) -> str:
    return f"text/{prompt:06d}"


# --- text encoder: prompts -> features ---


def encode_prompts(plan: Plan, numbers: list[int], away: bool, pieces: Pieces, log: Log) -> None:
    """Write the features of the prompts with these numbers, and those to guide away from.

    One text at a time: its features are the same whatever is asked for beside it. Of a prompt only
    the tokens that are attended to are kept.
    """
    if not numbers and not away:
        return
    encoder = load_text_encoder(plan.config.text_encoder, plan.dtype)
    with Bar("text encoder", len(numbers) + away, "text", log) as bar:
        for number in numbers:
            text = plan.prompts[number].text
            features_1xLxD, mask_1xL = encoder.features([text], plan.max_length, 1)
            require_finite(features_1xLxD, [shortened(text)], "text encoder", plan)
            pieces.write(text_piece(number), tokens=features_1xLxD[0, mask_1xL[0] != 0])
            bar()
        if away:
            assert plan.away_from is not None
            features_1xLxD, mask_1xL = encoder.features([plan.away_from], plan.max_length, 1)
            require_finite(features_1xLxD, [shortened(plan.away_from)], "text encoder", plan)
            pieces.write(AWAY, tokens=features_1xLxD[0], mask=mask_1xL[0])
            bar()
    release(encoder.params)


# --- denoiser: features -> latents ---


def draw_batches(images: Images, numbers: list[int], mesh: Mesh, pieces: Pieces, log: Log) -> None:
    """Write the latents of the batches with these numbers."""
    if not numbers:
        return
    plan = images.plan
    params = load_sharded(plan.config.model, mesh, plan.dtype)[1]
    params = with_averages(plan.model, params, mesh)
    away = _away(plan, params, pieces)
    steps = len(numbers) * create_process(plan.protocol.steps).num_steps
    with Bar("denoiser", steps, "step", log) as bar:
        draw = make_text_sampler(plan.model, plan.protocol, mesh, plan.latent_size, bar)
        for number in numbers:
            cond, null_cond = conditions(images, number, away, pieces)
            members = images.filled(number)
            texts = [images.prompt(prompt).text for prompt, _ in members]
            keys = prompt_keys(plan.protocol.seed, texts, [k for _, k in members])
            latents_BxhxwxC = np.asarray(draw(params, keys, cond, null_cond))
            latents_BxhxwxC = latents_BxhxwxC[: len(images.members(number))]
            require_finite(latents_BxhxwxC, names(images, number), "sampler", plan)
            pieces.write(images.piece(number), latents=latents_BxhxwxC, devices=devices())
    release(params)


def _away(plan: Plan, params: Any, pieces: Pieces) -> tuple[np.ndarray, np.ndarray] | None:
    """Return tokens [L, D] to guide away from and their own mask [L]; None without guidance."""
    if not plan.guides:
        return None
    if plan.away_from is not None:
        piece = pieces.read(AWAY)
        return piece["tokens"], piece["mask"]
    stored_LxD = np.asarray(params["y_embedder"]["null_caption"], np.float32)
    return stored_LxD[: plan.max_length], plan.tokenizer([""], plan.max_length)[1][0]


def conditions(
    images: Images, batch: int, away: tuple[np.ndarray, np.ndarray] | None, pieces: Pieces
) -> tuple[TextCondition, TextCondition]:
    """Return what the images of a batch are guided towards and away from."""
    plan = images.plan
    texts = [pieces.read(text_piece(prompt))["tokens"] for prompt, _ in images.filled(batch)]
    size = plan.size if plan.model.micro_condition else None
    return text_conditions(texts, plan.max_length, away, plan.null_mask == "own", size)


# --- VAE: latents -> images ---


def decode_batches(
    images: Images, numbers: list[int], mesh: Mesh, pieces: Pieces, log: Log
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, images uint8 [B, H, W, C]) of the batches with these numbers."""
    if not numbers:
        return
    plan = images.plan
    shardings = functional.shardings(plan.vae, mesh)
    params = folder.load_model_dir(plan.config.vae, shardings)[1]
    decode = _tiled(plan, params) if plan.config.tile else _whole(plan, params, mesh)
    count = sum(len(images.members(number)) for number in numbers)
    with Bar("VAE", count, "image", log) as bar:
        for number in numbers:
            latents_BxhxwxC = pieces.read(images.piece(number))["latents"]
            images_BxHxWxC = decode(latents_BxhxwxC, images.batch_size)
            require_finite(images_BxHxWxC, names(images, number), "VAE", plan)
            yield number, to_uint8(images_BxHxWxC)
            for _ in images_BxHxWxC:
                bar()
    release(params)


def _whole(plan: Plan, params: Any, mesh: Mesh) -> Any:
    """Return every device decodes its images one by one."""
    program = _decoding(plan.vae, mesh)

    def decode(latents_BxhxwxC: np.ndarray, size: int) -> np.ndarray:
        index_B = np.minimum(np.arange(size), len(latents_BxhxwxC) - 1)
        return np.asarray(program(params, latents_BxhxwxC[index_B]))[: len(latents_BxhxwxC)]

    return decode


@functools.lru_cache(maxsize=8)
def _decoding(vae: AutoencoderConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    return jax.jit(decoder(vae, mesh, 1), out_shardings=sharding.replicated(mesh))


def _tiled(plan: Plan, params: Any) -> Any:
    """Return one device decodes all images, tile by tile."""
    device = jax.local_devices()[0]
    model = functional.with_params(plan.vae, jax.device_put(params, device))

    def decode(latents_BxhxwxC: np.ndarray, size: int) -> np.ndarray:
        plain = np.asarray(model.unscaled(latents_BxhxwxC))
        return np.concatenate([model.decode_tiled(latent[None]) for latent in plain])

    return decode


# --- all phases ---


def names(images: Images, batch: int) -> list[str]:
    """Return what to call the images of a batch in a message."""
    return [
        f"image {number} of {shortened(images.prompt(prompt).text)}"
        for prompt, number in images.members(batch)
    ]


def require_finite(array: np.ndarray, what: list[str], where: str, plan: Plan) -> None:
    """Raise FloatingPointError, naming the first of the things along axis 0 that is not finite."""
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if finite.all():
        return
    remedy = "a lower --guidance" if plan.dtype == "float32" else "--dtype float32"
    raise FloatingPointError(
        f"{what[int(np.argmin(finite))]} is not finite after the {where}; check the weights, or"
        f" try {remedy}"
    )


def devices() -> np.ndarray:
    """Return what this process draws on, as an array of text."""
    return np.array(f"{jax.local_device_count()} x {jax.devices()[0].device_kind}")


def release(params: Any) -> None:
    """Free the memory of a network at once, whoever still knows of it."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    gc.collect()
