"""Features of texts: the tokenizer and the T5 of a model folder, as one function.

N texts, L tokens, D d_model, B texts of one call of the network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax import sharding
from lit_jax.checkpoints.identity import TextEncoderIdentity
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.config import MeshConfig, unknown_name
from lit_jax.data.tokenizer import Tokenizer, load_tokenizer
from lit_jax.models import functional
from lit_jax.models.t5.config import T5Config

DTYPES = ("float32", "bfloat16")

Program = Callable[[np.ndarray, np.ndarray], jax.Array]
"""A text encoder: (token ids [B, L], mask [B, L]) -> features float32 [B, L, D]."""


def features_of_each(
    program: Program,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield features [L, D] and mask [L] of one text after the other, L = max_length.

    The network sees `batch_size` texts in every call, empty ones beside too few, so that the
    features of a text do not depend on how many others there are, and one program is compiled.
    """
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        filled = [*batch, *[""] * (batch_size - len(batch))]
        ids_BxL, mask_BxL = tokenizer(filled, max_length)
        features_BxLxD = np.asarray(program(ids_BxL, mask_BxL))
        yield from zip(features_BxLxD[: len(batch)], mask_BxL, strict=False)


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
        self, texts: Sequence[str], max_length: int, batch_size: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return features float32 [N, L, D] and mask int32 [N, L] of texts, L = max_length.

        At padded positions the features are what T5 gives there. One program is compiled per
        (batch_size, L); see `features_of_each`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        program = functools.partial(encoder_program(self.config), self.params)
        features_NxLxD = np.empty((len(texts), max_length, self.config.d_model), np.float32)
        mask_NxL = np.empty((len(texts), max_length), np.int32)
        found = features_of_each(program, self.tokenizer, texts, max_length, batch_size)
        for row, (features_LxD, mask_L) in enumerate(found):
            features_NxLxD[row], mask_NxL[row] = features_LxD, mask_L
        return features_NxLxD, mask_NxL


@functools.lru_cache(maxsize=8)
def encoder_program(config: T5Config) -> Callable[..., jax.Array]:
    """Return the compiled network: f(params, ids [B, L], mask [B, L]) -> float32 [B, L, D]."""
    return jax.jit(functional.apply_fn(config))


def load_text_encoder(path: str | Path | ModelFolder, dtype: str = "float32") -> TextEncoder:
    """Return the text encoder in a model folder, computing in `dtype` ("float32" or "bfloat16").
    With bfloat16 the parameters are held in it, too, which halves the memory; int8 ones stay int8.

    Raises ValueError, before any parameter is read, when the folder holds no T5 with its tokenizer.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype of the text encoder", dtype, DTYPES)
    folder = path if isinstance(path, ModelFolder) else ModelFolder(path, expect="T5")
    config: Any = folder.config
    tokenizer = load_tokenizer(folder.path)
    identity = folder.text_encoder_identity
    # Straight onto one device: a tree in the memory of the host would be a second copy.
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    # The matrices are int8 already; rounding their scales would cost accuracy and save nothing.
    held = dtype if config.weights == "float" else "float32"
    params = folder.params(mesh, held)
    return TextEncoder(dataclasses.replace(config, dtype=dtype), tokenizer, identity, params)
