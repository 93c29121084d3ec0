"""Records in the `config.json` of a denoiser besides its architecture: the autoencoder of its
latents and the text encoder of its features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_jax.checkpoints.folder import CONFIG
from lit_jax.checkpoints.identity import TextEncoderIdentity, VaeIdentity
from lit_jax.config import from_mapping

VAE, TEXT_ENCODER = "vae", "text_encoder"
"""The entries of `config.json`."""


def recorded_vae(model: str | Path) -> VaeIdentity | None:
    """Return the VAE whose latents a model was trained on; None when its folder does not say."""
    return _recorded(model, VAE, VaeIdentity)


def recorded_text_encoder(model: str | Path) -> TextEncoderIdentity | None:
    """Return the text encoder a model was trained with; None when its folder does not say."""
    return _recorded(model, TEXT_ENCODER, TextEncoderIdentity)


def _recorded(model: str | Path, entry: str, kind: type[Any]) -> Any:
    path = Path(model) / CONFIG
    content = json.loads(path.read_text())
    if content.get(entry) is None:
        return None
    return from_mapping(kind, content[entry], f'"{entry}" of {path}')
