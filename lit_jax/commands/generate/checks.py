"""What the generate job refuses before it loads anything large, and the request its output
belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lit_jax.checkpoints import folder
from lit_jax.checkpoints.identity import (
    TextEncoderIdentity,
    VaeIdentity,
    params_sha256,
    text_encoder_identity,
    vae_identity,
)
from lit_jax.checkpoints.recorded import recorded_text_encoder, recorded_vae
from lit_jax.config.generate import GenerateConfig, parse_aspect_ratio
from lit_jax.config.typed import require
from lit_jax.data import buckets
from lit_jax.data.tokenizer import Tokenizer, load_tokenizer
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.family import architecture
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import LabelledConfig
from lit_jax.models.t5.config import T5Config
from lit_jax.runs.hosts import Log
from lit_jax.sampling.drawing import PIXEL_CHANNELS
from lit_jax.sampling.prompts import Prompt, folder_of, read_prompts
from lit_jax.sampling.text_drawing import TextProtocol, check_protocol
from lit_jax.sampling.windows import with_windows

PIXEL_STEP = 16
"""Sides of an image are multiples of it, as those of all buckets are."""

USUAL_LENGTH = 300  # tokens of a prompt, for models that hold no null caption to tell

# Entries of a request that are for people: the same weights may lie in another folder.
INFORMATION = ("model", "vae.id", "text_encoder.id")


@dataclass(frozen=True)
class Plan:
    """What the checks have established. `size` counts pixels, `latent_size` latent pixels, height
    first; `folder` is where the names of the files of `prompts` start."""

    config: GenerateConfig
    prompts: tuple[Prompt, ...]
    folder: Path
    model: PixArtConfig
    text: T5Config
    vae: AutoencoderConfig
    tokenizer: Tokenizer
    protocol: TextProtocol
    size: tuple[int, int]
    latent_size: tuple[int, int]
    max_length: int
    dtype: str

    @property
    def guides(self) -> bool:
        return self.protocol.cfg_scale != 1.0

    @property
    def away_from(self) -> str | None:
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
    """Which networks these are."""

    weights_sha256: str
    text_encoder: TextEncoderIdentity
    vae: VaeIdentity


def check(config: GenerateConfig) -> Plan:
    """Return all that can be refused by looking at names, sizes and prompts."""
    prompts = read_prompts(config)
    model = read_denoiser(config.model)
    text, vae = read_text_encoder(config.text_encoder), read_vae(config.vae)
    check_fit(config, model, text, vae)
    protocol = TextProtocol(config.sampler, config.steps, config.guidance, seed=config.seed)
    check_protocol(protocol, model)
    require(
        config.guidance != 1.0 or not config.negative_prompt,
        "--negative_prompt is given, but --guidance 1 is no guidance; give a scale above 1",
    )
    for path in (config.model, config.text_encoder, config.vae):
        folder.require_weights(path)
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
        dataclasses.replace(model, dtype=dtype),
        dataclasses.replace(text, dtype=dtype),
        dataclasses.replace(vae, dtype=dtype),
        load_tokenizer(config.text_encoder),
        protocol,
        size,
        latent_size,
        text_length(config, model),
        dtype,
    )
    check_out(config)
    return plan


def read_denoiser(path: str) -> PixArtConfig:
    config = folder.read_config(path)
    if isinstance(config, LabelledConfig):
        raise ValueError(
            f"--model {path} holds a {config.family} on class labels; draw from it with `sample`"
        )
    if not isinstance(config, PixArtConfig):
        raise ValueError(f"--model {path} holds a {config.family}; a PixArt or LiT-0.6B is needed")
    return config


def read_text_encoder(path: str) -> T5Config:
    config = folder.read_config(path)
    if not isinstance(config, T5Config):
        raise ValueError(f"--text_encoder {path} holds a {config.family}; a T5 is needed")
    return config


def read_vae(path: str) -> AutoencoderConfig:
    config = folder.read_config(path)
    if not isinstance(config, AutoencoderConfig):
        raise ValueError(f"--vae {path} holds a {config.family}; an AutoencoderKL is needed")
    return config


def check_fit(
    config: GenerateConfig, model: PixArtConfig, text: T5Config, vae: AutoencoderConfig
) -> None:
    """The three networks must speak of the same numbers of channels."""
    require(
        text.d_model == model.caption_channels,
        f"--text_encoder {config.text_encoder} makes features of {text.d_model} channels,"
        f" {config.model} takes caption_channels {model.caption_channels}; give the encoder it was"
        " trained with",
    )
    require(
        vae.latent_channels == model.in_channels,
        f"--vae {config.vae} has latents of {vae.latent_channels} channels, {config.model} makes"
        f" {model.in_channels}; give the VAE it was trained with",
    )
    require(
        vae.out_channels in PIXEL_CHANNELS,
        f"--vae {config.vae} makes images of {vae.out_channels} channels; 1 or 3 can be written",
    )


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
    """The output must be what it is to be: a file or a folder."""
    out = Path(config.out).expanduser()
    folder.check_local(config.out, "--out")
    folder.check_parents(out)
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


def shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def identify(plan: Plan, log: Log) -> Identities:
    """Read the weights, or their recorded sums, and compares them with what the model was trained
    with. Raises ValueError for another VAE or text encoder."""
    config = plan.config
    text, vae = text_encoder_identity(config.text_encoder), vae_identity(config.vae)
    named_text, named_vae = recorded_text_encoder(config.model), recorded_vae(config.model)
    if named_text is not None:
        ours = f"the captions of {config.model}"
        named_text.require_same(text, ours, f"--text_encoder {config.text_encoder}")
    if named_vae is not None:
        named_vae.require_same(vae, f"the latents of {config.model}", f"--vae {config.vae}")
    for named, what, path in (
        (named_text, "text encoder", config.text_encoder),
        (named_vae, "VAE", config.vae),
    ):
        if named is None:
            log(f"note: {config.model} does not say which {what} it belongs to; taking {path}")
    return Identities(params_sha256(folder.load_model_dir(config.model)[1]), text, vae)


def request_of(plan: Plan, identities: Identities) -> dict[str, Any]:
    """Return everything that defines an image besides its prompt and number."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return {
        "model": plan.config.model,
        "weights_sha256": identities.weights_sha256,
        "architecture": architecture(plan.model),
        "text_encoder": dataclasses.asdict(identities.text_encoder),
        "vae": dataclasses.asdict(identities.vae),
        "protocol": dataclasses.asdict(plan.protocol),
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
