"""The flags of every job, and what is said when they are wrong.

Knows absl and ml_collections and nothing of jax, so that a slip of the keyboard is answered at
once.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from lit_jax.config.cost import CostConfig
from lit_jax.config.generate import GenerateConfig

# Experiment files import what they share from `configs`, wherever the command is run.
REPOSITORY = str(Path(__file__).resolve().parents[2])

Row = tuple[Callable[..., Any], str, Any, str]

TEXT, NUMBER, REAL = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
SWITCH = flags.DEFINE_boolean
CONFIG = config_flags.DEFINE_config_file

# Kind, name, default and help of each flag. Without a default it must be given.
JOB_FLAGS: dict[str, tuple[Row, ...]] = {
    "encode": (
        (CONFIG, "config", None, "configs/encode_*.py, with ':ARG' if it takes one."),
        (TEXT, "out", None, "Folder of the latents; the same command again resumes it."),
    ),
    "self_generate": (
        (CONFIG, "config", None, "configs/self_generate.py, with ':ARG' if it takes one."),
        (TEXT, "out", None, "Folder of the examples; the same command again resumes it."),
    ),
    "train": (
        (CONFIG, "config", None, "Experiment file, with ':ARG' if it takes one."),
        (TEXT, "workdir", None, "Folder of the run; the same command again resumes it."),
    ),
    "sample": (
        (TEXT, "model", None, "Model folder or training workdir (its EMA is used)."),
        (TEXT, "out", None, "Folder for samples.npz; the same command again resumes it."),
        (NUMBER, "num_samples", None, "Number of images."),
        (TEXT, "sampler", "ddpm", "ddpm, ddim, dpm_solver or dpm_solver_diffusers."),
        (TEXT, "steps", "250", "Steps: 250; for ddpm and ddim also ddim50 or 10,15,20."),
        (REAL, "cfg_scale", 1.0, "Classifier-free guidance; 1 is none."),
        (TEXT, "cfg_channels", "three", "Guided channels: three (official DiT) or all."),
        (TEXT, "cfg_interval", "", "LOW,HIGH: guide only at timesteps in between."),
        (TEXT, "labels", "", "Class labels, repeated in this order."),
        (TEXT, "label_policy", "balanced", "Without --labels: balanced (in turn) or uniform."),
        (TEXT, "vae", "", "Model folder of the VAE, for a model of latents."),
        (SWITCH, "save_latents", False, "Keep the latents, too: latents.npz."),
        (TEXT, "dtype", "float32", "What the denoiser computes in: float32 or bfloat16."),
        (NUMBER, "batch_size", 64, "Images per batch, over the devices of a process."),
        (NUMBER, "decode_batch_size", 8, "Images the VAE decodes at a time, per device."),
        (NUMBER, "sequence", 1, "Devices that share one image, each with some of its rows."),
        (NUMBER, "window_size", 0, "CLEAR without training: radius of a softmax model's windows."),
        (NUMBER, "down_factor", 0, "With --window_size: pooled tokens, each of so many squared."),
        (NUMBER, "shard_size", 512, "Images per shard: what a kill can cost."),
        (NUMBER, "seed", 0, "Seed; image i depends on it and i alone."),
    ),
}

# What `evaluate --model` hands on to the sample job.
SAMPLING_FLAGS = tuple(row[1] for row in JOB_FLAGS["sample"] if row[1] not in ("model", "out"))

JOB_FLAGS["evaluate"] = (
    (TEXT, "samples", "", "An npz with arr_0, a folder of images, or one made by sample."),
    (TEXT, "model", "", "Instead of --samples: draw them first; takes the flags of sample."),
    (TEXT, "reference", "", "An npz (mu, sigma; arr_0), a folder, or tfds:NAME:SPLIT."),
    (TEXT, "inception", "", "Model folder of the FID Inception."),
    (TEXT, "out", "", "The JSON file with the scores; the same command again resumes it."),
    (TEXT, "reference_data_dir", "", "Where TFDS keeps its data sets, for tfds:NAME:SPLIT."),
    (NUMBER, "resolution", 0, "ADM crop of photographs of the reference; 0: none."),
    (NUMBER, "reference_images", 10_000, "Images of the reference for precision, recall, KID."),
    (NUMBER, "is_splits", 10, "Splits of the Inception Score."),
    (NUMBER, "inception_batch_size", 64, "Images per batch, over the devices of a process."),
    (TEXT, "cache_dir", "", "Where statistics are kept; default: beside the reference."),
    (SWITCH, "self_test", False, "Check the installation; with --reference, that one."),
    (NUMBER, "num_samples", 50_000, "With --model: number of images."),
    *(row for row in JOB_FLAGS["sample"] if row[1] not in ("model", "out", "num_samples")),
)

_DRAWN = {field.name: field.default for field in dataclasses.fields(GenerateConfig)}

JOB_FLAGS["generate"] = (
    (TEXT, "model", None, "Model folder or training workdir of a PixArt or LiT-0.6B."),
    (TEXT, "text_encoder", None, "Model folder of the T5 it was trained with."),
    (TEXT, "vae", None, "Model folder of the VAE it was trained with."),
    (TEXT, "out", None, "The PNG of one prompt, the folder of many; run again to resume."),
    *(
        (define, name, _DRAWN[name], about)
        for define, name, about in (
            (TEXT, "prompt", "What to draw."),
            (TEXT, "prompt_file", "One prompt per line; blank lines and # comments are none."),
            (TEXT, "geneval", "GenEval's evaluation_metadata.jsonl; --out gets its layout."),
            (TEXT, "negative_prompt", "What to lead away from, instead of the null caption."),
            (NUMBER, "num_images", "Images per prompt; GenEval asks for 4."),
            (TEXT, "aspect_ratio", "WIDTH:HEIGHT, as 16:9: the nearest size of PixArt's table."),
            (TEXT, "steps", "Steps of the sampler."),
            (REAL, "guidance", "Classifier-free guidance; 1 is none."),
            (TEXT, "sampler", "dpm_solver (PixArt), dpm_solver_diffusers, ddim or ddpm."),
            (NUMBER, "seed", "Image k of a prompt depends on it, the prompt and k."),
            (TEXT, "null_mask", "Mask of the null caption: prompt (PixArt) or own (diffusers)."),
            (TEXT, "dtype", "float32 or bfloat16; auto: float32 on CPUs, bfloat16 elsewhere."),
            (SWITCH, "tile", "Decode in tiles, in less memory."),
            (NUMBER, "batch_size", "Images per batch, over the devices of a process."),
            (NUMBER, "max_length", "Tokens of a prompt; 0: those of the model."),
            (NUMBER, "window_size", "CLEAR without training: radius of a softmax model's windows."),
            (NUMBER, "down_factor", "With --window_size: pooled tokens, each of so many squared."),
            (SWITCH, "overwrite", "Replace the PNG of another request."),
        )
    ),
    (TEXT, "size", "", "HEIGHTxWIDTH in pixels, as 768x1344; default: that of the model."),
)

_COUNTED: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(CostConfig)}

JOB_FLAGS["cost"] = (
    (TEXT, "model", None, "Names or model folders, with commas; arguments follow after spaces."),
    (TEXT, "out", None, "Folder of the tables and plots; the same command again resumes it."),
    (TEXT, "resolutions", ",".join(map(str, CostConfig.resolutions)), "Sides in pixels."),
    (NUMBER, "vae_factor", _COUNTED["vae_factor"], "Pixels per latent pixel; 1: no latents."),
    (NUMBER, "compile_up_to", _COUNTED["compile_up_to"], "Compile up to this side; 0: nothing."),
    (NUMBER, "batch_size", _COUNTED["batch_size"], "Images of the compiled programs."),
    (TEXT, "dtype", _COUNTED["dtype"], "What they compute in: float32 or bfloat16."),
)


def declare(job: str) -> flags.FlagValues:
    """Return the flags of `job`, not parsed yet."""
    declared = flags.FlagValues()
    for define, name, default, about in JOB_FLAGS[job]:
        define(name, default, about, flag_values=declared)
    needed = [name for _, name, default, _ in JOB_FLAGS[job] if default is None]
    flags.mark_flags_as_required(needed, flag_values=declared)
    return declared


def parse(declared: flags.FlagValues, argv: Sequence[str]) -> None:
    """Give the flags their values. `argv` starts with the name of the program, as `sys.argv`, where
    ml_collections looks up overrides (`--config.x.y=v`).

    Raises ValueError, with one line that names the flag, for anything wrong on the command line.
    """
    if REPOSITORY not in sys.path:
        sys.path.append(REPOSITORY)
    try:
        rest = declared(argv)[1:]
        if "config" in declared:
            # A file that could not be read complains on first use only.
            declared.config.lock()
    except (AttributeError, KeyError) as error:
        if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise  # a bug in the config file
        raise ValueError(_missing_key(error)) from error
    except flags.Error as error:
        # Quotes the traceback of a config file that raises, whose last line is the message.
        first, _, trace = str(error).partition("Error whilst parsing config file:")
        last = trace.strip().split("\n")[-1].strip().removeprefix("ValueError: ")
        raise ValueError(first + last) from error
    except OSError as error:
        raise ValueError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    if rest:
        raise ValueError(f"{' '.join(rest)!r} belongs to no flag; write --flag VALUE, lists as 1,2")


def numbers(declared: flags.FlagValues, name: str, kind: type) -> tuple[Any, ...]:
    """Return the value of a flag that lists numbers with commas in between."""
    text = getattr(declared, name)
    try:
        return tuple(kind(part) for part in text.split(",") if part)
    except ValueError as error:
        raise ValueError(f"--{name} {text!r}: {error}") from error


def _missing_key(error: Any) -> str:
    """Return what ml_collections says of a key that is not there; it names the nearest one."""
    while isinstance(error, Exception):
        error = error.args[0]
    return f"--config has no key {error}" if error.startswith("'") else f"--config: {error}"
