"""Checks of a generate job before it loads anything large, and the request of its output."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lit_jax.checkpoints.identity import TextEncoderIdentity, VaeIdentity
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import check_local, check_parents
from lit_jax.config.generate import GenerateConfig, parse_aspect_ratio
from lit_jax.config.protocol import Protocol
from lit_jax.config.typed import require
from lit_jax.data import buckets
from lit_jax.data.tokenizer import Tokenizer, load_tokenizer
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.family import architecture
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.t5.config import T5Config
from lit_jax.runs.hosts import Log
from lit_jax.sampling.decode import PIXEL_CHANNELS
from lit_jax.sampling.prompts import Prompt, folder_of, read_prompts, shortened
from lit_jax.sampling.sampler import check_protocol
from lit_jax.sampling.windows import with_windows

PIXEL_STEP = 16
"""Sides of an image are multiples of it, as those of all buckets are."""

USUAL_LENGTH = 300  # tokens of a prompt, for models that hold no null caption to tell

# Entries of a request that are for people: the same weights may lie in another folder.
INFORMATION = ("model", "vae.id", "text_encoder.id")


@dataclass(frozen=True)
class Folders:
    """The three networks on disk."""

    model: ModelFolder
    text: ModelFolder
    vae: ModelFolder


@dataclass(frozen=True)
class Plan:
    """Result of the checks. `size` counts pixels, `latent_size` latent pixels, height
    first; `folder` is where the names of the files of `prompts` start."""

    config: GenerateConfig
    prompts: tuple[Prompt, ...]
    folder: Path
    folders: Folders
    model: PixArtConfig
    text: T5Config
    vae: AutoencoderConfig
    tokenizer: Tokenizer
    protocol: Protocol
    size: tuple[int, int]
    latent_size: tuple[int, int]
    max_length: int
    dtype: str

    @property
    def guides(self) -> bool:
        return self.protocol.cfg_scale != 1.0

    @property
    def uncond_text(self) -> str | None:
        """The text that guidance leads away from, None when the model's null caption serves or
        there is no guidance."""
        stored = self.model.model_max_length is not None
        if not self.guides or (stored and not self.config.negative_prompt):
            return None
        return self.config.negative_prompt

    @property
    def null_mask(self) -> str:
        """A row of NULL_MASKS; a negative prompt has tokens of its own."""
        return "own" if self.config.negative_prompt else self.config.null_mask


@dataclass(frozen=True)
class Identities:
    """Identities of the three networks."""

    weights_sha256: str
    text_encoder: TextEncoderIdentity
    vae: VaeIdentity


def check(config: GenerateConfig) -> Plan:
    """Check names, sizes and prompts. Raises ValueError for a job that cannot work."""
    prompts = read_prompts(config)
    folders = Folders(
        ModelFolder(config.model, expect="caption", flag="--model"),
        ModelFolder(config.text_encoder, expect="T5", flag="--text_encoder"),
        ModelFolder(config.vae, expect="AutoencoderKL", flag="--vae"),
    )
    model, text, vae = map(_config, (folders.model, folders.text, folders.vae))
    folders.model.require_companions(folders.vae, folders.text)
    require(
        vae.out_channels in PIXEL_CHANNELS,
        f"--vae {config.vae} makes images of {vae.out_channels} channels; 1 or 3 can be written",
    )
    protocol = config.protocol
    check_protocol(protocol, model)
    require(
        protocol.cfg_scale != 1.0 or not config.negative_prompt,
        "--negative_prompt is given, but --cfg_scale 1 is no guidance; give a scale above 1",
    )
    size = image_size(config, model, vae)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    latent_size = (size[0] // vae.downsampling, size[1] // vae.downsampling)
    grid = (latent_size[0] // model.patch_size, latent_size[1] // model.patch_size)
    model = with_windows(model, config.window_size, config.down_factor, grid, config.model)
    plan = Plan(
        config,
        prompts,
        folder_of(config),
        folders,
        dataclasses.replace(model, dtype=dtype),
        dataclasses.replace(text, dtype=dtype),
        dataclasses.replace(vae, dtype=dtype),
        load_tokenizer(folders.text.path),
        protocol,
        size,
        latent_size,
        text_length(config, model),
        dtype,
    )
    check_out(config)
    return plan


def _config(folder: ModelFolder) -> Any:
    return folder.config


def image_size(
    config: GenerateConfig, model: PixArtConfig, vae: AutoencoderConfig
) -> tuple[int, int]:
    """Return height and width in pixels: as asked, or the nominal ones of the model."""
    nominal = (model.image_size[0] * vae.downsampling, model.image_size[1] * vae.downsampling)
    if config.aspect_ratio:
        size = buckets.nearest(*parse_aspect_ratio(config.aspect_ratio), max(nominal))
    else:
        size = config.size or nominal
    unit = math.lcm(PIXEL_STEP, vae.downsampling * model.patch_size)
    if any(side % unit for side in size):
        near = "x".join(str(max(round(side / unit), 1) * unit) for side in size)
        raise ValueError(
            f"size {size[0]}x{size[1]}: height and width must be multiples of {unit}; the"
            f" nearest is {near}"
        )
    return size


def text_length(config: GenerateConfig, model: PixArtConfig) -> int:
    """Return tokens of a prompt, padding included."""
    most = model.model_max_length
    require(
        most is None or config.max_length <= most,
        f"--max_length {config.max_length} is more than the {most} tokens of {config.model}",
    )
    return config.max_length or most or USUAL_LENGTH


def check_out(config: GenerateConfig) -> None:
    """Refuse a folder for one prompt and a file for many."""
    out = Path(config.out).expanduser()
    check_local(config.out, "--out")
    check_parents(out)
    if config.prompt:
        require(not out.is_dir(), f"--out {out} is a folder; give the name of a PNG in it")
    else:
        require(
            not out.exists() or out.is_dir(), f"--out {out} is a file; many prompts need a folder"
        )


def warn_of_cut_prompts(plan: Plan, log: Log) -> None:
    """Name the prompts whose end the text encoder will not see."""
    texts = [prompt.text for prompt in plan.prompts] + [plan.config.negative_prompt]
    cut = [(text, plan.tokenizer.length(text) - plan.max_length) for text in texts]
    cut = [(text, count) for text, count in cut if count > 0]
    for text, count in cut[:3]:
        log(
            f"warning: the last {count} tokens of the prompt {shortened(text)} are cut; the limit"
            f" is {plan.max_length}"
        )
    if len(cut) > 3:
        log(f"warning: and of {len(cut) - 3} prompts more")


def identify(plan: Plan, log: Log) -> Identities:
    """Return the identities of the networks, recorded or computed; log which are assumed."""
    folders = plan.folders
    for recorded, what, folder in (
        (folders.model.text_encoder, "text encoder", folders.text),
        (folders.model.vae, "VAE", folders.vae),
    ):
        if recorded is None:
            log(f"note: {folders.model} does not record its {what}; {folder} is used")
    return Identities(
        folders.model.sha256, folders.text.text_encoder_identity, folders.vae.vae_identity
    )


def request_of(plan: Plan, identities: Identities) -> dict[str, Any]:
    """Return everything that defines an image besides its prompt and number."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    protocol = dataclasses.asdict(plan.protocol)
    return {
        "model": plan.config.model,
        "weights_sha256": identities.weights_sha256,
        "architecture": architecture(plan.model),
        "text_encoder": dataclasses.asdict(identities.text_encoder),
        "vae": dataclasses.asdict(identities.vae),
        # Earlier versions knew no interval: without one, requests are the same.
        "protocol": {k: v for k, v in protocol.items() if v is not None},
        "size": list(plan.size),
        "negative_prompt": plan.config.negative_prompt or None,
        "null_mask": plan.null_mask if plan.guides else None,
        "max_length": plan.max_length,
        "dtype": plan.dtype,
        "tile": plan.config.tile,
        "matmul_precision": precision or "default",
    }


def request_of_folder(plan: Plan, of_image: dict[str, Any]) -> dict[str, Any]:
    """Return `request_of`, and which images: for an output of many prompts."""
    lines = [f"{prompt.text}\n{prompt.metadata}" for prompt in plan.prompts]
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return of_image | {
        "prompts": {"count": len(lines), "sha256": sha256},
        "num_images": plan.config.num_images,
        "layout": "geneval" if plan.config.geneval else "numbered",
    }
