"""Model folders as (configuration, parameters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_jax.checkpoints.identity import TextEncoderIdentity, VaeIdentity
from lit_jax.checkpoints.model_folder import ModelFolder


def load_model_dir(path: str | Path, dtype: Any = "float32") -> tuple[Any, dict[str, Any]]:
    """Return configuration and parameters (numpy arrays) of a model folder or workdir."""
    folder = ModelFolder(path)
    return folder.config, folder.params(dtype=dtype)


def vae_identity(path: str | Path) -> VaeIdentity:
    """Return the identity of the VAE in a model folder."""
    return ModelFolder(path, expect="AutoencoderKL").vae_identity


def text_encoder_identity(path: str | Path) -> TextEncoderIdentity:
    """Return the identity of the text encoder in a model folder."""
    return ModelFolder(path, expect="T5").text_encoder_identity
