"""Features of texts: the tokenizer and the T5 of a model folder, as one function.

N texts, L tokens, D d_model, B texts of one call of the network.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax import sharding
from lit_jax.config import MeshConfig, T5Config, unknown_name
from lit_jax.data.tokenizer import Tokenizer, load_tokenizer
from lit_jax.jobs.processes import Say
from lit_jax.models import zoo
from lit_jax.training.metrics import duration
from lit_jax.weights import folder
from lit_jax.weights.fingerprint import TextEncoderIdentity, text_encoder_identity

DTYPES = ("float32", "bfloat16")

# Features that are there sooner than this are not worth a word, in seconds.
PATIENCE = 10.0


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A T5 with its tokenizer, in the memory of one device.

    `config.dtype` is what it computes in; features are float32 in any case.
    """

    config: T5Config
    tokenizer: Tokenizer
    identity: TextEncoderIdentity
    params: Any

    def features(
        self,
        texts: Sequence[str],
        max_length: int,
        batch_size: int = 8,
        say: Say | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [N, L, D] and mask int32 [N, L] of texts, L = max_length.

        At padded positions the features are what T5 gives there. The network sees `batch_size`
        texts in every call, empty ones beside too few, so that the features of a text do not
        depend on how many others there are, and one program is compiled per (batch_size, L).
        `say` hears of the progress when it takes long.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        ids_NxL, mask_NxL = self.tokenizer(texts, max_length)
        features_NxLxD = np.empty((len(texts), max_length, self.config.d_model), np.float32)
        encode = encoder_program(self.config)
        began = told = time.monotonic()
        for start in range(0, len(texts), batch_size):
            rows = slice(start, min(start + batch_size, len(texts)))
            count = rows.stop - rows.start
            ids_BxL, mask_BxL = self.tokenizer([""] * batch_size, max_length)
            ids_BxL[:count], mask_BxL[:count] = ids_NxL[rows], mask_NxL[rows]
            features_NxLxD[rows] = np.asarray(encode(self.params, ids_BxL, mask_BxL))[:count]
            now = time.monotonic()
            if say is not None and now - told > PATIENCE and rows.stop < len(texts):
                left = duration((now - began) / rows.stop * (len(texts) - rows.stop))
                say(f"text features: {rows.stop:,} of {len(texts):,} texts, ETA {left}")
                told = now
        return features_NxLxD, mask_NxL


@functools.lru_cache(maxsize=8)
def encoder_program(config: T5Config) -> Callable[..., jax.Array]:
    """The compiled network: f(params, ids [B, L], mask [B, L]) -> float32 [B, L, D]."""
    return jax.jit(zoo.apply_fn(config))


def load_text_encoder(path: str | Path, dtype: str = "float32") -> TextEncoder:
    """The text encoder in a model folder, computing in `dtype` ("float32" or "bfloat16"). With
    bfloat16 the parameters are held in it, too, which halves the memory; int8 ones stay int8.

    Raises ValueError, before any parameter is read, when the folder holds no T5 with its tokenizer.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype of the text encoder", dtype, DTYPES)
    config = folder.read_config(path)
    if not isinstance(config, T5Config):
        raise ValueError(f"{path} holds a {config.family}; a text encoder (T5) is needed")
    tokenizer = load_tokenizer(path)
    identity = text_encoder_identity(path)
    # Straight onto one device: a tree in the memory of the host would be a second copy.
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    shardings = sharding.tree_shardings(zoo.abstract_params(config), mesh)
    # The matrices are int8 already; rounding their scales would cost accuracy and save nothing.
    held = dtype if config.weights == "float" else "float32"
    params = folder.load_model_dir(path, shardings, param_dtype=held)[1]
    return TextEncoder(dataclasses.replace(config, dtype=dtype), tokenizer, identity, params)
