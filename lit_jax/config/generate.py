"""Settings of the generate command."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_jax.config.protocol import CAPTIONS, Protocol
from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require, unknown_name

NULL_MASKS = ("prompt", "own")
"""Tokens of the null caption that are attended to: as many as the prompt has, as in PixArt's
sampler, or its own, as in diffusers."""

DTYPES = ("auto", "float32", "bfloat16")
"""Computation of the networks. "auto" is float32 on CPUs, bfloat16 elsewhere."""

SOURCES = ("prompt", "prompt_file", "geneval")
"""Sources of prompts; exactly one is given."""


@dataclass(frozen=True)
class GenerateConfig:
    """Images of a model on captions."""

    model: str = setting(help="model folder or training workdir of a PixArt or LiT-0.6B")
    text_encoder: str = setting(help="model folder of the T5 that the model was trained with")
    vae: str = setting(help="model folder of the VAE that the model was trained with")
    out: str = setting(help="PNG of one prompt, folder of many; the same command resumes it")
    prompt: str = setting("", group="prompts", help="text of the image")
    prompt_file: str = setting(
        "", group="prompts", help="file with one prompt per line, except blank lines and # comments"
    )
    geneval: str = setting(
        "", group="prompts", help="GenEval's evaluation_metadata.jsonl; --out gets its layout"
    )
    negative_prompt: str = setting(
        "", group="prompts", help="unconditional text of the guidance, instead of the null caption"
    )
    num_images: int = setting(1, group="prompts", help="images per prompt; GenEval needs 4")
    size: tuple[int, int] | None = setting(
        None, group="images", help="HEIGHTxWIDTH in pixels, as 768x1344; default: that of the model"
    )
    aspect_ratio: str = setting(
        "", group="images", help="WIDTH:HEIGHT, as 16:9: the nearest size of PixArt's table"
    )
    protocol: Protocol = CAPTIONS
    null_mask: str = setting(
        "prompt",
        group="sampling",
        help="mask of the null caption: prompt (PixArt) or own (diffusers)",
    )
    dtype: str = setting(
        "auto", group="model", help="float32 or bfloat16; auto: float32 on CPUs, bfloat16 elsewhere"
    )
    window_size: int = setting(
        0, group="model", help="CLEAR without training: radius of the windows of a softmax model"
    )
    down_factor: int = setting(
        0, group="model", help="with --window_size: side in tokens of the pooled patches"
    )
    max_length: int = setting(0, group="model", help="tokens of a prompt; 0: those of the model")
    tile: bool = setting(False, group="speed", help="decode in tiles, in less memory")
    batch_size: int = setting(
        4, group="speed", help="images per batch, over the devices of a process"
    )
    overwrite: bool = setting(False, group="speed", help="replace the PNG of another request")

    def __post_init__(self) -> None:
        for name in ("model", "text_encoder", "vae", "out"):
            require(bool(getattr(self, name)), f"--{name} is empty; see generate --help")
        for what, name, rows in (
            ("null mask", self.null_mask, NULL_MASKS),
            ("dtype", self.dtype, DTYPES),
        ):
            if name not in rows:
                raise unknown_name(what, name, rows)
        limit(self, "an integer of at least 1", "num_images", "batch_size")
        limit(self, "at least 0", "max_length", "window_size", "down_factor")
        if self.prompt or not (self.prompt_file or self.geneval):
            require(
                bool(self.prompt.strip()),
                f"--prompt {self.prompt!r} is empty; give a text, or --prompt_file",
            )
        given = [name for name in SOURCES if getattr(self, name)]
        require(
            len(given) == 1,
            f"{' and '.join('--' + name for name in given)} are given; choose one of them",
        )
        if self.prompt:
            require(
                self.out.lower().endswith(".png"),
                f"--out {self.out} is no .png; one --prompt makes a PNG file",
            )
        require(
            not (self.overwrite and not self.prompt),
            "--overwrite replaces the PNG of one --prompt; remove a folder yourself",
        )
        if self.size is not None:
            require(
                not self.aspect_ratio,
                f"--size and --aspect_ratio {self.aspect_ratio} contradict; give one",
            )
            require(min(self.size) > 0, f"--size {self.size} must be at least 1 x 1")
        if self.aspect_ratio:
            parse_aspect_ratio(self.aspect_ratio)


def parse_aspect_ratio(text: str) -> tuple[int, int]:
    """Return (9, 16), height first, of "16:9", which is width to height. ValueError for anything
    else."""
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text.strip())
    if found is None:
        raise ValueError(f"--aspect_ratio {text!r} is not of the form WIDTH:HEIGHT, as 16:9")
    return int(found[2]), int(found[1])
