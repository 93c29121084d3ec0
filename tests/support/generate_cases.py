"""Tiny text-to-image networks for the tests of generate: folders of random weights that fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config.generate import SOURCES, GenerateConfig
from lit_jax.config.protocol import CAPTIONS, Protocol
from lit_jax.models.functional import abstract_params
from lit_jax.models.pixart.config import PixArtConfig
from support import autoencoder_cases
from support.attention_cases import random_like
from support.text_encoder_cases import write_text_encoder

COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square", "triangle")
PROMPTS = tuple(f"a photo of a {c} {s}" for c, s in itertools.product(COLOURS, SHAPES))

PIXART: Mapping[str, Any] = {
    "input_size": 8,
    "in_channels": 4,
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 16,
    "model_max_length": 30,
    "kernel_size": 3,
}


def save_pixart(path: Path, seed: int = 0, **fields: Any) -> Path:
    """A denoiser whose images look away from the borders of the range, so that they all differ."""
    config = PixArtConfig(**(PIXART | fields))
    params = random_like(abstract_params(config), seed)
    linear = params["final_layer"]["linear"]
    linear["kernel"], linear["bias"] = linear["kernel"] * 0.2, linear["bias"] * 0.2
    save_model_dir(path, config, params, {"source": "random"})
    return path


def save_vae(path: Path, **fields: Any) -> Path:
    """Latents of 4 channels, twice as many pixels along an axis."""
    model = autoencoder_cases.tiny(**({"scaling_factor": 1.0} | fields))
    params = autoencoder_cases.params_of(model)
    save_model_dir(path, model.config, params, {"source": "random"})
    return path


@dataclasses.dataclass(frozen=True)
class Folders:
    """Three networks that fit, and the flags that name them."""

    model: Path
    text_encoder: Path
    vae: Path

    def flags(self) -> list[str]:
        return [f"--{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self)]

    def names(self) -> dict[str, str]:
        return {f.name: str(getattr(self, f.name)) for f in dataclasses.fields(self)}


def save_all(folder: Path, **fields: Any) -> Folders:
    return Folders(
        save_pixart(folder / "pixart", **fields),
        write_text_encoder(folder / "t5"),
        save_vae(folder / "vae"),
    )


def config_for(folders: Folders, out: Path, **changes: Any) -> GenerateConfig:
    """A quick request on float32; without any source of prompts, the first one of PROMPTS."""
    sources = {name: changes[name] for name in SOURCES if name in changes}
    of_protocol = {field.name for field in dataclasses.fields(Protocol)}
    protocol = {"steps": "3"} | {k: v for k, v in changes.items() if k in of_protocol}
    others = {k: v for k, v in changes.items() if k not in of_protocol}
    request = {"dtype": "float32", "out": str(out)} | folders.names() | others
    request["protocol"] = dataclasses.replace(CAPTIONS, **protocol)
    return GenerateConfig(**(request if sources else request | {"prompt": PROMPTS[0]}))


def pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, C] as integers that can be subtracted."""
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def prompt_file(path: Path, prompts: Sequence[str] = PROMPTS) -> str:
    path.write_text("\n".join(prompts) + "\n")
    return str(path)


def geneval_file(path: Path, prompts: Sequence[str] = PROMPTS) -> str:
    """Lines as those of GenEval's evaluation_metadata.jsonl."""
    lines = [
        json.dumps({"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": prompt})
        for prompt in prompts
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)
