"""Settings of the generate command."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_jax.config.typed import limit, require, unknown_name

NULL_MASKS = ("prompt", "own")
"""Which tokens of the null caption are attended to: as many as the prompt has, as in PixArt's
sampler, or its own, as in diffusers."""

DTYPES = ("auto", "float32", "bfloat16")
"""What the networks compute in. "auto" is float32 on CPUs, bfloat16 elsewhere."""

SOURCES = ("prompt", "prompt_file", "geneval")
"""Where prompts come from; exactly one is given."""


@dataclass(frozen=True)
class GenerateConfig:
    """A generate job.

    - `model`, `text_encoder`, `vae`: model folders;
    - `prompt`: one text, or `prompt_file`: one per line, or `geneval`: the metadata of GenEval;
    - `out`: a PNG for one prompt, a folder otherwise;
    - `negative_prompt`: what guidance leads away from, "" for the null caption;
    - `num_images` of every prompt;
    - `size`: height and width in pixels, or `aspect_ratio`: "WIDTH:HEIGHT", the nearest of the
      table of PixArt at the nominal size of the model. Neither: the nominal size;
    - `steps`, `sampler`, `guidance`, `seed`: as in `jobs.text_drawing.TextProtocol`;
    - `null_mask`: a row of NULL_MASKS; a negative prompt has its own mask in any case;
    - `dtype`: a row of DTYPES;
    - `tile`: decode the latents in tiles, in less memory;
    - `batch_size`: images over the devices of a process;
    - `max_length`: tokens of a prompt, 0 for those of the model;
    - `overwrite`: replace a PNG that was made by another request;
    - `window_size`: radius of CLEAR's windows in a softmax model that was not trained for them,
      `down_factor`: pooled tokens beside them; 0 for none.
    """

    model: str
    text_encoder: str
    vae: str
    out: str
    prompt: str = ""
    prompt_file: str = ""
    geneval: str = ""
    negative_prompt: str = ""
    num_images: int = 1
    size: tuple[int, int] | None = None
    aspect_ratio: str = ""
    steps: str = "20"
    guidance: float = 4.5
    sampler: str = "dpm_solver"
    seed: int = 0
    null_mask: str = "prompt"
    dtype: str = "auto"
    tile: bool = False
    batch_size: int = 4
    max_length: int = 0
    overwrite: bool = False
    window_size: int = 0
    down_factor: int = 0

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
                f"--prompt {self.prompt!r} is empty; say what to draw, or give --prompt_file",
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
                f"--size and --aspect_ratio {self.aspect_ratio} both say how large; give one",
            )
            require(min(self.size) > 0, f"--size {self.size} must be at least 1 x 1")
        if self.aspect_ratio:
            parse_aspect_ratio(self.aspect_ratio)


def parse_size(text: str) -> tuple[int, int] | None:
    """Return (768, 1344) of "768x1344", height first; None of "". ValueError otherwise."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if found is None:
        raise ValueError(f"--size {text!r} is not of the form HEIGHTxWIDTH, as 768x1344")
    return int(found[1]), int(found[2])


def parse_aspect_ratio(text: str) -> tuple[int, int]:
    """Return (9, 16), height first, of "16:9", which is width to height. ValueError for anything
    else."""
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text.strip())
    if found is None:
        raise ValueError(f"--aspect_ratio {text!r} is not of the form WIDTH:HEIGHT, as 16:9")
    return int(found[2]), int(found[1])
