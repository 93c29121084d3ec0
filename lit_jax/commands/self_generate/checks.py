"""Checks of a self_generate job, before anything is compiled or written."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_jax.checkpoints.identity import VaeIdentity
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.writing import check_local, check_parents
from lit_jax.config import unknown_name
from lit_jax.config.protocol import Protocol
from lit_jax.config.sample import DTYPES
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.config.typed import require
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.models.registry import DenoiserConfig, LabelledConfig
from lit_jax.runs.hosts import Log
from lit_jax.sampling.captions import text_request
from lit_jax.sampling.decode import PIXEL_CHANNELS
from lit_jax.sampling.labels import LABEL_POLICIES
from lit_jax.sampling.prompts import texts_of
from lit_jax.sampling.sampler import check_protocol, fitting_batch
from lit_jax.sampling.shards import Shards


@dataclass(frozen=True)
class Plan:
    """Result of the checks. `vae` is None for a teacher of pixels; `prompts` are those
    of the first examples, at most one each, and there are none for class labels; `text` decides
    their features. `latent_size` is height and width of a sample, in the teacher's pixels."""

    config: SelfGenerateConfig
    out: Path
    model: ModelFolder
    teacher: DenoiserConfig
    protocol: Protocol
    vae: VaeIdentity | None
    vae_folder: ModelFolder | None
    prompts: tuple[str, ...]
    text: Mapping[str, Any]
    latent_size: tuple[int, int]
    log: Log

    @property
    def shards(self) -> Shards:
        config = self.config
        return Shards(config.num_samples, min(config.shard_size, config.num_samples))

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
        count = getattr(self.teacher, "num_classes", 0)  # a field of denoisers on labels
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
    """Check everything that needs no device. Raises ValueError for a job that cannot work."""
    model = ModelFolder(config.model, expect="denoiser", flag="model")
    teacher: Any = model.config
    check_local(out, "--out")
    check_parents(out)
    if config.dtype not in DTYPES:
        raise unknown_name("dtype", config.dtype, DTYPES)
    vae_folder = check_vae(config, model)
    vae = model.vae if vae_folder is None else vae_folder.vae_identity
    prompts: tuple[str, ...] = ()
    text: dict[str, Any] = {}
    protocol = config.protocol
    check_protocol(protocol, teacher)
    if model.is_a("caption"):
        prompts, text = check_text(config, model)
        size = check_size(config, teacher, vae)
    else:
        check_labels(config, teacher)
        size = teacher.image_size
    teacher = dataclasses.replace(teacher, dtype=config.dtype)
    return Plan(config, out, model, teacher, protocol, vae, vae_folder, prompts, text, size, log)


def check_vae(config: SelfGenerateConfig, model: ModelFolder) -> ModelFolder | None:
    """Return the given VAE, None without one. Raises ValueError for latents without a VAE and for
    another VAE than that of the teacher."""
    teacher: Any = model.config
    if model.vae is None and not model.is_a("caption") and teacher.in_channels in PIXEL_CHANNELS:
        require(
            not config.vae,
            f"vae is {config.vae}, but {config.model} is a model of pixels ({teacher.in_channels}"
            " channels); leave it empty",
        )
        return None
    if not config.vae:
        require(
            model.vae is not None,
            f"{config.model} does not record which VAE its latents of {teacher.in_channels}"
            " channels belong to; give the model folder of that VAE (vae)",
        )
        return None
    vae = ModelFolder(config.vae, expect="AutoencoderKL", flag="vae")
    model.require_companions(vae=vae, flags=("vae", ""))
    channels = vae.config.out_channels  # type: ignore[union-attr]
    require(
        channels in PIXEL_CHANNELS,
        f"the VAE {config.vae} makes images of {channels} channels; 1 or 3 can be shown",
    )
    return vae


def check_labels(config: SelfGenerateConfig, teacher: LabelledConfig) -> None:
    """Refuse settings of prompts, and a label policy without effect."""
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
    if config.label_policy not in LABEL_POLICIES:
        raise unknown_name("label policy", config.label_policy, LABEL_POLICIES)
    require(
        config.label_policy == "balanced" or teacher.num_classes > 0,
        f"label_policy is {config.label_policy!r}, but {config.model} is unconditional; leave it"
        " 'balanced'",
    )


def check_text(
    config: SelfGenerateConfig, model: ModelFolder
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the prompts of the examples, and the settings of their features."""
    text, teacher = config.text, model.config
    require(
        bool(config.prompt_file),
        f"{model} draws from captions; give a file with one prompt per line (prompt_file)",
    )
    require(
        bool(text.encoder),
        f"{model} draws from captions; give the model folder of its T5 (text.encoder)",
    )
    prompts = texts_of(Path(config.prompt_file))[: config.num_samples]
    encoder = ModelFolder(text.encoder, expect="T5", flag="text.encoder")
    model.require_companions(text_encoder=encoder, flags=("", "text.encoder"))
    most = teacher.model_max_length  # type: ignore[union-attr]
    require(
        most is None or text.max_length == most,
        f"text.max_length is {text.max_length}, {model} takes {most} tokens; set it to {most}",
    )
    return tuple(prompts), text_request(text, encoder)


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
