"""`python -m lit_jax generate`: a prompt in, a picture out, offline from model folders.

One prompt becomes a PNG; a file of prompts, or GenEval's, a folder of them. Image k of a prompt
depends on the seed, the prompt and k only, besides model and settings. The three networks are in
memory one after another: the text encoder, the denoiser, the VAE. What each leaves is kept on disk
until the end, so that the same command again goes on where it was stopped.

Reads top-down: `generate` is the table of contents.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from jax.sharding import Mesh

from lit_jax import sharding
from lit_jax.commands.generate import memory as generate_memory
from lit_jax.commands.generate.checks import (
    check,
    identify,
    request_of,
    request_of_folder,
    warn_of_cut_prompts,
)
from lit_jax.commands.generate.output import Output, Pieces, write_image
from lit_jax.commands.generate.phases import (
    AWAY,
    Images,
    decode_batches,
    draw_batches,
    encode_prompts,
    text_piece,
)
from lit_jax.config import MeshConfig
from lit_jax.config.generate import GenerateConfig
from lit_jax.runs.hosts import Log, as_first_process_sees, barrier, log_on_first_process
from lit_jax.runs.requests import require_space
from lit_jax.sampling.drawing import fitting_batch
from lit_jax.version import VERSION


def generate(config: GenerateConfig, log: Log = log_on_first_process) -> Path:
    """Draw what `config` asks for and return the path of the output.

    The same call again resumes; on a finished output it does nothing. Every process of a multi-host
    job makes the same call; the output lies where all of them see it.

    Raises ValueError before anything is loaded for whatever cannot work, and before anything is
    written for a VAE or text encoder of another model, or an output of another request;
    FloatingPointError for an image that is not finite.
    """
    plan, out = check(config), Path(config.out).expanduser()
    phases = generate_memory.Phases()
    warn_of_cut_prompts(plan, log)
    count = len(plan.prompts) * config.num_images
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:count])
    images = Images(plan, fitting_batch(config.batch_size, count, mesh.size))
    generate_memory.tell(plan, images.batch_size // mesh.size, log)
    with phases.phase("reading weights"):
        request = request_of(plan, identify(plan, log))
    output = Output(plan, request, None if config.prompt else request_of_folder(plan, request))
    present = output.present()
    missing = [
        any(images.file(*member) not in present for member in images.members(batch))
        for batch in images.batches
    ]
    finished, *missing = as_first_process_sees(np.array([output.finished(present), *missing]))
    if finished:
        if jax.process_index() == 0:
            output.remove_pieces()
        log(f"nothing to do: {out} holds {counted(count, 'image')} of this request")
        return out
    left = [batch for batch in images.batches if missing[batch]]
    check_space(images, len(left))
    announce(images, len(left), log)
    begin(output)
    mine = left[jax.process_index() :: jax.process_count()]
    draw(images, output, mine, present, mesh, phases, log)
    barrier("the images are drawn")
    if jax.process_index() == 0:
        output.finish(record_of(images, output.pieces()))
    barrier("the images are complete")
    phases.tell(log)
    log(f"wrote {out}")
    return out


def check_space(images: Images, batches: int) -> None:
    """There must be room for the images and for the pieces of work before them."""
    plan = images.plan
    lengths = [min(plan.tokenizer.length(p.text), plan.max_length) for p in plan.prompts]
    texts = 4 * plan.text.d_model * (sum(lengths) + plan.max_length)
    latents = 4 * math.prod(plan.latent_size) * plan.model.in_channels
    pixels = math.prod(plan.size) * plan.vae.out_channels
    needed = texts + batches * images.batch_size * (latents + pixels)
    require_space(
        plan.folder, needed, "images and unfinished work", "make room, or choose another --out"
    )


def announce(images: Images, left: int, log: Log) -> None:
    plan, protocol = images.plan, images.plan.protocol
    away = "the null caption" if plan.config.negative_prompt == "" else "the negative prompt"
    guidance = f"guidance {protocol.cfg_scale} away from {away}" if plan.guides else "no guidance"
    log(
        f"{counted(len(images), 'image')} of {plan.size[0]} x {plan.size[1]} (height x width) from"
        f" {counted(len(plan.prompts), 'prompt')}: {protocol.sampler}, {protocol.steps} steps,"
        f" {guidance},"
        f" {protocol.function_evaluations()} network evaluations per image, seed {protocol.seed},"
        f" {plan.dtype}"
    )
    if plan.config.window_size:
        log(
            f"note: each token sees those at a distance below {plan.config.window_size}, which"
            f" {plan.config.model} was not trained for"
        )
    if left < len(images.batches):
        log(f"{left} of {len(images.batches)} batches are left")


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def begin(output: Output) -> None:
    """Nobody writes before everybody has looked."""
    barrier("the output is listed")
    if jax.process_index() == 0:
        output.begin()
    barrier("the output is prepared")


def draw(
    images: Images,
    output: Output,
    batches: list[int],
    present: set[str],
    mesh: Mesh,
    phases: generate_memory.Phases,
    log: Log,
) -> None:
    """The three phases for these batches of images, each from what the one before left on disk."""
    plan, pieces = images.plan, output.pieces()
    undrawn = [batch for batch in batches if not pieces.has(images.piece(batch))]
    prompts = {prompt for batch in undrawn for prompt, _ in images.members(batch)}
    unread = [prompt for prompt in sorted(prompts) if not pieces.has(text_piece(prompt))]
    away = bool(undrawn) and plan.away_from is not None and not pieces.has(AWAY)
    with phases.phase("prompts to features"):
        encode_prompts(plan, unread, away, pieces, log)
    with phases.phase("features to latents"):
        draw_batches(images, undrawn, mesh, pieces, log)
    with phases.phase("latents to images"):
        for batch, images_BxHxWxC in decode_batches(images, batches, mesh, pieces, log):
            write_images(images, output, batch, images_BxHxWxC, present)


def write_images(
    images: Images, output: Output, batch: int, images_BxHxWxC: np.ndarray, present: set[str]
) -> None:
    """Write the images of a batch that are not there."""
    for (prompt, number), image_HxWxC in zip(images.members(batch), images_BxHxWxC, strict=True):
        name = images.file(prompt, number)
        if name not in present:
            text, settings = images.prompt(prompt), output.settings(images.prompt(prompt), number)
            write_image(images.plan.folder / name, image_HxWxC, text.text, settings)


def record_of(images: Images, pieces: Pieces) -> dict[str, Any]:
    """Return what a reader of a folder wants to know besides the request."""
    drawn_on = {str(pieces.read(name)["devices"]) for name in pieces.names("latents")}
    return {
        "network_evaluations": images.plan.protocol.function_evaluations(),
        "devices": ", ".join(sorted(drawn_on)),
        "versions": {
            "lit_jax": VERSION,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
    }
