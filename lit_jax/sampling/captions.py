"""The captions of an encode job: through the text encoder, and into its records.

Letters: B captions of a batch, L tokens (the maximum), n valid tokens of a caption, D the width of
their features.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.config import TextConfig
from lit_jax.data.latents.schema import write_array
from lit_jax.data.latents.writer import LatentExample, as_stored
from lit_jax.data.tokenizer import Tokenizer
from lit_jax.models import functional
from lit_jax.sampling.text_features import Program, features_of_each, load_text_encoder

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class CaptionEncoder:
    """A text encoder on all devices of this host, `batch_size` captions at a time."""

    tokenizer: Tokenizer
    max_length: int
    width: int
    batch_size: int
    program: Program

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return features float32 [n, D] of the n valid tokens of every text."""
        return [features_LxD[: int(mask_L.sum())] for features_LxD, mask_L in self._features(texts)]

    def null_caption(self) -> np.ndarray:
        """Return features float32 [L, D] of the empty text at all positions."""
        ((features_LxD, _),) = self._features([""])
        return features_LxD

    def truncated(self, text: str) -> bool:
        """Return whether a text has more tokens than are kept."""
        mask_1xL = self.tokenizer([text], self.max_length + 1)[1]
        return bool(mask_1xL.sum() > self.max_length)

    def _features(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features [L, D] and mask [L] of every text."""
        return features_of_each(
            self.program, self.tokenizer, texts, self.max_length, self.batch_size
        )


def write_null_caption(path: Path, encoder: CaptionEncoder, dtype: str) -> None:
    """Write the features of the empty caption. `dtype` is that of the stored captions, among which
    training puts it. Raises ValueError when it does not fit."""
    found_LxD = encoder.null_caption()
    as_stored(found_LxD, dtype, "the features of the empty caption", "text.dtype", "encoder")
    write_array(path, found_LxD)


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items in their order; the last one holds what is left."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def make_caption_encoder(text: TextConfig, precision: str) -> CaptionEncoder:
    """Load the text encoder of a config onto all local devices.

    As with images, every device runs the program that one device alone would run on
    `text.batch_size` captions. `precision` is that of float32 products.
    """
    encoder = load_text_encoder(text.encoder)
    mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    whole, split = PartitionSpec(), PartitionSpec("data")
    apply = functional.apply_fn(encoder.config)

    def features(params: functional.Params, ids_BxL: jax.Array, mask_BxL: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return apply(params, ids_BxL, mask_BxL)

    sharded = jax.shard_map(features, mesh=mesh, in_specs=(whole, split, split), out_specs=split)
    program = jax.jit(sharded)
    params = jax.device_put(encoder.params, NamedSharding(mesh, whole))

    def run(ids_BxL: np.ndarray, mask_BxL: np.ndarray) -> jax.Array:
        place = NamedSharding(mesh, split)
        return program(params, jax.device_put(ids_BxL, place), jax.device_put(mask_BxL, place))

    batch_size = text.batch_size * mesh.size
    width = encoder.config.d_model
    return CaptionEncoder(encoder.tokenizer, text.max_length, width, batch_size, run)


def with_tokens(
    examples: Iterable[LatentExample], encoder: CaptionEncoder
) -> Iterator[LatentExample]:
    """Yield the examples with the features of their captions; a caption that is "" has no
    tokens."""
    none = np.zeros((0, encoder.width), np.float32)
    for group in groups(examples, encoder.batch_size):
        texts = [text for example in group for text in example.captions if text]
        found = iter(encoder.tokens(texts))
        for example in group:
            tokens = [next(found) if text else none for text in example.captions]
            yield dataclasses.replace(example, tokens=tokens)


TEXT_FIELDS = ("max_length", "dtype", "batch_size")
"""Settings of captions that decide their features."""


def text_request(text: TextConfig, folder: ModelFolder) -> dict[str, Any]:
    """Return the settings that decide the features of captions, for `request.json`."""
    encoder = dataclasses.asdict(folder.text_encoder_identity)
    return {"encoder": encoder, **{name: getattr(text, name) for name in TEXT_FIELDS}}


def text_of_schema(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry `text` of a schema, from `text_request`."""
    kept = {name: request[name] for name in ("encoder", "max_length", "dtype")}
    return {**kept, "width": request["encoder"]["width"]}
