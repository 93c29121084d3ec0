"""Tiny text-to-image networks for the tests of generate: folders of random weights that fit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import autoencoder_cases
import numpy as np
import sentencepiece
from attention_cases import random_like

from lit_jax.config import PixArtConfig, T5Config
from lit_jax.config.t5 import TOKENIZER_FILE
from lit_jax.models.zoo import abstract_params
from lit_jax.weights.folder import save_model_dir

SENTENCES = [f"a photo of {n} {c} {s}s on the {p}" for n in ("one", "two", "three", "four")
             for c in ("red", "green", "blue") for s in ("circle", "square", "triangle")
             for p in ("left", "right")]
