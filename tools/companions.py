"""What belongs to the weights of a network: a T5's tokenizer, a denoiser's VAE and text encoder."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from lit_jax.checkpoints.identity import TEXT_ENCODER, VAE
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.data.tokenizer import Tokenizer
from lit_jax.models.registry import family_of
from lit_jax.models.t5.config import TOKENIZER_FILE

PIECES = Path(TOKENIZER_FILE).name


def find_tokenizer(args: argparse.Namespace, config: Any) -> Path | None:
    """Return the sentencepiece model that goes with a T5: `--tokenizer` (a file or its folder),
    else spiece.model beside the source, in the folder `tokenizer` next to it as in diffusers'
    pipelines, or in the model folder that is to be replaced. None when there is none, and for other
    networks.

    Raises ValueError for a file that is not the tokenizer of this T5.
    """
    if family_of(config).name != "T5":
        if args.tokenizer:
            raise ValueError(
                f"--tokenizer belongs to a T5; the checkpoint is a {config.family}, leave it out"
            )
        return None
    if args.tokenizer:
        given = Path(args.tokenizer)
        places = [given / PIECES, given / TOKENIZER_FILE] if given.is_dir() else [given]
    else:
        source = Path(args.src).absolute()
        folder = source if source.is_dir() else source.parent
        places = [folder / PIECES, folder.parent / TOKENIZER_FILE, Path(args.dst) / TOKENIZER_FILE]
    found = next((place for place in places if place.is_file()), None)
    if found is None and args.tokenizer:
        raise ValueError(f"--tokenizer {args.tokenizer} is no file and no folder with a {PIECES}")
    if found is not None:
        Tokenizer(found, config.vocab_size)
    return found


def copy_tokenizer(tokenizer: Path | None, folder: Path) -> list[str]:
    """Put the tokenizer into a model folder of a T5; return what the user should know."""
    if tokenizer is None:
        return [
            f"there is no {PIECES} beside the source; before this T5 can encode text, copy it to"
            f" {TOKENIZER_FILE} in the model folder, or convert with --tokenizer FILE"
        ]
    target = folder / TOKENIZER_FILE
    target.parent.mkdir()
    shutil.copyfile(tokenizer, target)
    return [f"tokenizer: {tokenizer}"]


def recorded_companions(args: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Return the entries of `config.json` that name the VAE and the text encoder of a denoiser.

    Raises ValueError for networks that do not fit together.
    """
    entries: dict[str, Any] = {}
    if args.vae:
        if family_of(config).condition is None:
            raise ValueError(f"--vae belongs to a denoiser such as a DiT, not to a {config.family}")
        vae = ModelFolder(args.vae, expect="AutoencoderKL", flag="--vae").vae_identity
        if vae.latent_channels != config.in_channels:
            raise ValueError(
                f"--vae {args.vae} has latents of {vae.latent_channels} channels, the model takes"
                f" {config.in_channels}; give the VAE it was trained with"
            )
        entries[VAE] = dataclasses.asdict(vae)
    if args.text_encoder:
        if family_of(config).condition != "caption":
            raise ValueError(f"--text_encoder belongs to a PixArt, not to a {config.family}")
        folder = ModelFolder(args.text_encoder, expect="T5", flag="--text_encoder")
        encoder = folder.text_encoder_identity
        if encoder.width != config.caption_channels:
            raise ValueError(
                f"--text_encoder {args.text_encoder} has features of width {encoder.width}, the"
                f" model takes {config.caption_channels}; give the encoder it was trained with"
            )
        entries[TEXT_ENCODER] = dataclasses.asdict(encoder)
    return entries
