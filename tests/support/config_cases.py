"""The experiment files and their arguments, and how a test builds them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from configs import digits_roadmap
from lit_jax.config import TrainConfig, from_mapping

ROOT = Path(__file__).resolve().parents[2]

# Not experiments: what the files share, the published rows and the pages made from them.
NOT_EXPERIMENTS = {"common", "published", "reproduce"}

# File -> its arguments, () where it takes none. A new file needs a row.
IMAGENET = (
    "dit_imagenet256",
    "dit_imagenet512",
    "lit_imagenet256",
    "lit_imagenet512",
    "lit_ablation_attention",
    "lit_ablation_heads",
    "lit_ablation_inheritance",
    "lit_ablation_distillation",
    "dig_imagenet256",
)
CLEAR = ("clear_imagenet256", "clear_imagenet512", "clear_t2i")
DIGITS: dict[str, tuple[str, ...]] = {
    "digits_teacher": (),
    "digits_lit": ("distilled", "inherited", "scratch"),
    "digits_roadmap": digits_roadmap.ARGUMENTS,
}
PIXELS = {"pixels_folder": ("classes", "images", "tfds")}
TEXT: dict[str, tuple[str, ...]] = {
    "lit_t2i": ("512", "1024"),
    "shapes_teacher": (),
    "shapes_lit": ("distilled", "inherited", "scratch"),
}
CLEAR = ("clear_imagenet256", "clear_imagenet512", "clear_t2i")
ENCODE: dict[str, tuple[str, ...]] = {
    "encode_folder": ("classes", "images", "captions"),
    "encode_imagenet": ("256", "512"),
    "encode_t2i": ("512", "1024"),
    "shapes_encode": (),
}
# What a job draws, neither an experiment nor an encode job.
DRAWN: dict[str, tuple[str, ...]] = {
    "self_generate": ("imagenet256", "imagenet512", "t2i", "digits"),
}


def module(name: str) -> Any:
    return importlib.import_module(f"configs.{name}")


ARGUMENTS: dict[str, tuple[str, ...]] = (
    DIGITS | TEXT | PIXELS | {name: module(name).ARGUMENTS for name in (*IMAGENET, *CLEAR)}
)
CASES = [(name, argument) for name, row in ARGUMENTS.items() for argument in row or (None,)]


def build(name: str, argument: str | None) -> TrainConfig:
    chosen = () if argument is None else (argument,)
    return from_mapping(TrainConfig, module(name).get_config(*chosen).to_dict())
