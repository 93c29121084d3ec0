"""What the job of self-generated data refuses before it compiles or writes anything, and the
request it leaves."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_jax.checkpoints import folder
from lit_jax.checkpoints.identity import TextEncoderIdentity, VaeIdentity, vae_identity
from lit_jax.checkpoints.recorded import recorded_text_encoder, recorded_vae
from lit_jax.commands.encode.checks import check_out, text_request
from lit_jax.commands.sample import checks as sample_checks
from lit_jax.config import unknown_name
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.config.typed import require
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig, LabelledConfig
from lit_jax.runs.hosts import Log
from lit_jax.sampling.drawing import PIXEL_CHANNELS, Protocol, fitting_batch
from lit_jax.sampling.labels import LABEL_POLICIES
from lit_jax.sampling.prompts import texts_of
from lit_jax.sampling.shards import Shards
from lit_jax.sampling.text_drawing import TextProtocol, check_protocol


@dataclass(frozen=True)
class Plan:
    """What the checks have established. `vae` is None for a teacher of pixels; `prompts` are those
    of the first examples, at most one each, and there are none for class labels; `text` decides
    their features. `latent_size` is height and width of a sample, in the teacher's pixels."""

    config: SelfGenerateConfig
    out: Path
    teacher: DenoiserConfig
    protocol: Protocol | TextProtocol
    vae: VaeIdentity | None
    prompts: tuple[str, ...]
    text: Mapping[str, Any]
    latent_size: tuple[int, int]
    log: Log

    @property
    def shards(self) -> Shards:
        config = self.config
        return Shards(self.out, config.num_samples, min(config.shard_size, config.num_samples))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        down = 1 if self.vae is None else self.vae.downsampling
        return self.latent_size[0] * down, self.latent_size[1] * down

    def batch_size(self, devices: int) -> int:
        """Return examples that are drawn together. It does not depend on what is there already, so
        that a resumed job draws the same bits."""
        return fitting_batch(self.config.batch_size, self.shards.size, devices)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes: their numbers, which is all that a model knows."""
        count = self.teacher.num_classes if isinstance(self.teacher, LabelledConfig) else 0
        return tuple(map(str, range(count)))

    def prompt(self, index: int) -> str:
        """Return the prompt of an example."""
        return self.prompts[index % len(self.prompts)]

    def numbers(self) -> list[int]:
        """Return how often the prompt of every example has come before: equal ones get other
        images."""
        seen: Counter[str] = Counter()
        found = []
        for index in range(self.config.num_samples):
            found.append(seen[self.prompt(index)])
            seen[self.prompt(index)] += 1
        return found


def check(config: SelfGenerateConfig, out: Path, log: Log) -> Plan:
    """Return all that can be refused without touching a device. Writes nothing."""
    teacher = folder.read_denoiser_config(config.model)
    folder.require_weights(config.model)
    check_out(out)
    if config.dtype not in sample_checks.DTYPES:
        raise unknown_name("dtype", config.dtype, sample_checks.DTYPES)
    vae = check_vae(config, teacher)
    prompts: tuple[str, ...] = ()
    text: dict[str, Any] = {}
    protocol: Protocol | TextProtocol
    if isinstance(teacher, PixArtConfig):
        protocol = text_protocol(config, teacher)
        prompts, text = check_text(config, teacher)
        size = check_size(config, teacher, vae)
    else:
        protocol = label_protocol(config, teacher)
        size = teacher.image_size
    teacher = dataclasses.replace(teacher, dtype=config.dtype)
    return Plan(config, out, teacher, protocol, vae, prompts, text, size, log)


def check_vae(config: SelfGenerateConfig, teacher: DenoiserConfig) -> VaeIdentity | None:
    """Return the VAE that the teacher's latents belong to; None for a teacher of pixels."""
    named = recorded_vae(config.model)
    captions = isinstance(teacher, PixArtConfig)
    if named is None and not captions and teacher.in_channels in PIXEL_CHANNELS:
        require(
            not config.vae,
            f"vae is {config.vae}, but {config.model} is a model of pixels ({teacher.in_channels}"
            " channels); leave it empty",
        )
        return None
    if not config.vae:
        require(
            named is not None,
            f"{config.model} does not say which VAE its latents of {teacher.in_channels} channels"
            " belong to; give the model folder of that VAE (vae)",
        )
        return named
    folder.require_weights(config.vae)
    given, network = vae_identity(config.vae), folder.read_config(config.vae)
    assert isinstance(network, AutoencoderConfig)  # `vae_identity` refuses others
    require(
        given.latent_channels == teacher.in_channels,
        f"the VAE {config.vae} has latents of {given.latent_channels} channels, {config.model}"
        f" makes {teacher.in_channels}; give the VAE it was trained with",
    )
    require(
        network.out_channels in PIXEL_CHANNELS,
        f"the VAE {config.vae} makes images of {network.out_channels} channels; 1 or 3 can be"
        " shown",
    )
    if named is not None:
        named.require_same(given, f"the latents of {config.model}", f"vae {config.vae}")
    return given


def label_protocol(config: SelfGenerateConfig, teacher: LabelledConfig) -> Protocol:
    """Return how a teacher on class labels draws. Refuses what only belongs to prompts."""
    for name, value in (
        ("prompt_file", config.prompt_file),
        ("text.encoder", config.text.encoder),
        ("size", config.size),
    ):
        require(
            not value,
            f"{name} is {value}, but {config.model} is a {teacher.family} on class labels; leave"
            " it empty",
        )
    protocol = Protocol(
        config.sampler, config.steps, config.cfg_scale, config.cfg_channels, seed=config.seed
    )
    sample_checks.check(teacher, protocol, (), config.num_samples, config.batch_size)
    if config.label_policy not in LABEL_POLICIES:
        raise unknown_name("label policy", config.label_policy, LABEL_POLICIES)
    require(
        config.label_policy == "balanced" or teacher.num_classes > 0,
        f"label_policy is {config.label_policy!r}, but {config.model} is unconditional; leave it"
        " 'balanced'",
    )
    return protocol


def text_protocol(config: SelfGenerateConfig, teacher: PixArtConfig) -> TextProtocol:
    """Return how a teacher on captions draws."""
    protocol = TextProtocol(
        config.sampler, config.steps, config.cfg_scale, config.cfg_channels, seed=config.seed
    )
    check_protocol(protocol, teacher)
    return protocol


def check_text(
    config: SelfGenerateConfig, teacher: PixArtConfig
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the prompts of the examples, and what decides their features."""
    model, text = config.model, config.text
    require(
        bool(config.prompt_file),
        f"{model} draws from captions; give a file with one prompt per line (prompt_file)",
    )
    require(
        bool(text.encoder),
        f"{model} draws from captions; give the model folder of its T5 (text.encoder)",
    )
    prompts = texts_of(Path(config.prompt_file))[: config.num_samples]
    folder.require_weights(text.encoder)
    request = text_request(text)
    encoder = TextEncoderIdentity(**request["encoder"])
    named = recorded_text_encoder(model)
    if named is not None:
        ours = f"the captions of {model}"
        named.require_same(encoder, ours, f"text.encoder {text.encoder}")
    require(
        encoder.width == teacher.caption_channels,
        f"text.encoder {text.encoder} makes features of {encoder.width} channels, {model} takes"
        f" caption_channels {teacher.caption_channels}; give the encoder it was trained with",
    )
    most = teacher.model_max_length
    require(
        most is None or text.max_length == most,
        f"text.max_length is {text.max_length}, {model} takes {most} tokens; set it to {most}",
    )
    return tuple(prompts), request


def check_size(
    config: SelfGenerateConfig, teacher: PixArtConfig, vae: VaeIdentity | None
) -> tuple[int, int]:
    """Return height and width of the latents: of the images asked for, or the teacher's own."""
    assert vae is not None  # captions come with latents
    if not config.size:
        return teacher.image_size
    height, width = config.size
    unit = vae.downsampling * teacher.patch_size
    require(
        height % unit == width % unit == 0,
        f"size is {config.size}; height and width must be multiples of {unit}",
    )
    return height // vae.downsampling, width // vae.downsampling
