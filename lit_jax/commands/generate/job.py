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
from lit_jax.commands.generate import memory
from lit_jax.commands.generate.checks import (
    check,
    identify,
    request_of,
    request_of_folder,
    warn_of_cut_prompts,
)
from lit_jax.commands.generate.output import Pictures, write_image
from lit_jax.commands.generate.phases import (
    LATENTS,
    UNCOND,
    Images,
    decode_batches,
    draw_batches,
    encode_prompts,
    text_part,
)
from lit_jax.config import MeshConfig
from lit_jax.config.generate import GenerateConfig
from lit_jax.runs.hosts import Log, log_on_first_process, on_first_process, share
from lit_jax.runs.output import Output
from lit_jax.runs.requests import require_space
from lit_jax.sampling.sampler import fitting_batch, function_evaluations
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
    phases = memory.Phases()
    warn_of_cut_prompts(plan, log)
    count = len(plan.prompts) * config.num_images
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:count])
    images = Images(plan, fitting_batch(config.batch_size, count, mesh.size))
    memory.report(plan, images.batch_size // mesh.size, log)
    request = request_of(plan, identify(plan, log))
    pictures = Pictures(plan, request, None if config.prompt else request_of_folder(plan, request))
    present = on_first_process(pictures.present)
    with pictures.open(log) as output:
        if on_first_process(lambda: pictures.finished(present)):
            if jax.process_index() == 0:
                pictures.remove_work(output)
            log(f"nothing to do: {out} holds {counted(count, 'image')} of this request")
            return out
        left = [
            batch
            for batch in images.batches
            if any(images.file(*member) not in present for member in images.members(batch))
        ]
        check_space(images, len(left))
        announce(images, len(left), log)
        output.begin()
        if jax.process_index() == 0:
            pictures.remove_leftovers(output)
        draw(images, pictures, output, share(left), present, mesh, phases, log)
        output.close(lambda: finish(images, pictures, output))
        if jax.process_index() == 0:
            pictures.remove_work(output)
    phases.report(log)
    log(f"wrote {out}")
    return out


def check_space(images: Images, batches: int) -> None:
    """Refuse a disk without room for the images and the parts of work before them."""
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
    uncond = "the null caption" if plan.config.negative_prompt == "" else "the negative prompt"
    guidance = f"guidance {protocol.cfg_scale} against {uncond}" if plan.guides else "no guidance"
    log(
        f"{counted(len(images), 'image')} of {plan.size[0]} x {plan.size[1]} (height x width) from"
        f" {counted(len(plan.prompts), 'prompt')}: {protocol.sampler}, {protocol.steps} steps,"
        f" {guidance},"
        f" {function_evaluations(protocol)} network evaluations per image, seed {protocol.seed},"
        f" {plan.dtype}"
    )
    if plan.config.window_size:
        log(
            f"note: each token attends to those at a distance below {plan.config.window_size};"
            f" {plan.config.model} was not trained for that"
        )
    if left < len(images.batches):
        log(f"{left} of {len(images.batches)} batches are left")


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def draw(
    images: Images,
    pictures: Pictures,
    output: Output,
    batches: list[int],
    present: set[str],
    mesh: Mesh,
    phases: memory.Phases,
    log: Log,
) -> None:
    """Run the three phases for these batches of images, each from the parts of the one before."""
    plan = images.plan
    undrawn = [batch for batch in batches if not output.has(images.part(batch))]
    prompts = {prompt for batch in undrawn for prompt, _ in images.members(batch)}
    unread = [prompt for prompt in sorted(prompts) if not output.has(text_part(prompt))]
    uncond = bool(undrawn) and plan.uncond_text is not None and not output.has(UNCOND)
    with phases.phase("prompts to features"):
        encode_prompts(plan, unread, uncond, output, log)
    with phases.phase("features to latents"):
        draw_batches(images, undrawn, mesh, output, log)
    with phases.phase("latents to images"):
        for batch, images_BxHxWxC in decode_batches(images, batches, mesh, output, log):
            write_images(images, pictures, batch, images_BxHxWxC, present)


def write_images(
    images: Images, pictures: Pictures, batch: int, images_BxHxWxC: np.ndarray, present: set[str]
) -> None:
    """Write the missing images of a batch."""
    for (prompt, number), image_HxWxC in zip(images.members(batch), images_BxHxWxC, strict=True):
        name = images.file(prompt, number)
        if name not in present:
            text = images.prompt(prompt)
            settings = pictures.settings(text, number)
            write_image(images.plan.folder / name, image_HxWxC, text.text, settings)


def finish(images: Images, pictures: Pictures, output: Output) -> dict[str, Any]:
    """Write what follows from the images; return the content of the record of a folder."""
    made = pictures.finish()
    if pictures.of_folder is None:
        return {}
    return pictures.of_folder | origin(images, output) | {"made": made}


def origin(images: Images, output: Output) -> dict[str, Any]:
    """Return the evaluations, devices and versions that drew the images."""
    parts = sorted(path.stem for path in (output.work / LATENTS).glob("*.npz"))
    drawn_on = {str(output.load(f"{LATENTS}/{name}", "devices")["devices"]) for name in parts}
    return {
        "network_evaluations": function_evaluations(images.plan.protocol),
        "devices": ", ".join(sorted(drawn_on)),
        "versions": {
            "lit_jax": VERSION,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
        },
    }
