"""Identities of networks: hashes of their parameters, and the VAE and text encoder of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from lit_jax.models.functional import Params
from lit_jax.sharding import path_string

VAE, TEXT_ENCODER, IDENTITY = "vae", "text_encoder", "identity"
"""Entries of a `config.json`: the networks that a model was trained with, and its own hashes."""

FLOAT_SHA256 = "float32_sha256"
"""Entry of the provenance that a conversion writes: `tree_sha256` of the numbers it read."""


class ParamsSum:
    """sha256 over paths, dtypes, shapes and bytes of leaves, which are added in the order of their
    paths."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, path: str, leaf: np.ndarray) -> None:
        array = np.ascontiguousarray(leaf)
        self._digest.update(f"{path}|{array.dtype.str}|{array.shape}|".encode())
        self._digest.update(array.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def params_sha256(params: Params) -> str:
    """Return the `ParamsSum` (hex) of a parameter tree in memory."""
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    total = ParamsSum()
    for path, leaf in sorted(leaves.items()):
        total.add(path, jax.device_get(leaf))
    return total.hexdigest()


class LeafSum:
    """sha256 of an array of known shape as float32, whose parts along the first axis are added in
    their order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._digest = hashlib.sha256(f"{shape}|".encode())

    def add(self, part: np.ndarray) -> None:
        self._digest.update(np.ascontiguousarray(part, np.float32).data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def leaf_sha256(array: np.ndarray) -> str:
    """Return the `LeafSum` (hex) of a whole array."""
    total = LeafSum(array.shape)
    total.add(array)
    return total.hexdigest()


def tree_sha256(sums: Mapping[str, str]) -> str:
    """Return one sha256 (hex) from those of all leaves (path -> `LeafSum`), whatever their order.

    Unlike `ParamsSum` it can be computed while leaves pass by one after another.
    """
    lines = "".join(f"{path}|{value}\n" for path, value in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class VaeIdentity:
    """Identity of the autoencoder of a set of latents, with the scale of the latents.

    `id` is the name of its model folder, for people; `sha256` is that of all parameters
    (`ParamsSum`), `encoder_sha256` that of those which make latents. `downsampling` is image pixels
    per latent pixel along an axis.
    """

    id: str
    sha256: str
    encoder_sha256: str
    scaling_factor: float
    downsampling: int
    latent_channels: int

    def require_same(self, other: VaeIdentity, ours: str, theirs: str) -> None:
        """Raise ValueError unless `other` has the same latents: encoder and scale. Decoders may
        differ, as those of sd-vae-ft-ema and sd-vae-ft-mse. `ours` and `theirs` name the two, e.g.
        "the latents in data/x"."""
        mine, given = self.encoder_sha256, other.encoder_sha256
        if (mine, self.scaling_factor) != (given, other.scaling_factor):
            raise ValueError(
                f"{ours} belong to the VAE {self.id} (encoder sha256 {mine[:12]}, scale"
                f" {self.scaling_factor}), {theirs} is {other.id} (encoder sha256 {given[:12]},"
                f" scale {other.scaling_factor}); latents of one VAE are noise to another"
            )


@dataclass(frozen=True)
class TextEncoderIdentity:
    """Identity of the text encoder of a set of features.

    `sha256` is that of the network's numbers in float32 before any rounding, so that float32,
    bfloat16 and int8 forms of one encoder have the same; `tokenizer_sha256` that of `spiece.model`.
    `id`, the name of the model folder, is for people; `weights` is the stored type, as "bfloat16":
    features of one encoder differ a little with it. `width` is that of a feature.
    """

    id: str
    sha256: str
    tokenizer_sha256: str
    width: int
    weights: str

    def require_same(self, other: TextEncoderIdentity, ours: str, theirs: str) -> None:
        """Raise ValueError unless `other` is the same network with the same tokenizer. `ours` and
        `theirs` name the two, e.g. "the text features in data/x"."""
        for what, mine, given in (
            ("weights", self.sha256, other.sha256),
            ("tokenizer", self.tokenizer_sha256, other.tokenizer_sha256),
        ):
            if mine != given:
                raise ValueError(
                    f"{ours} belong to the text encoder {self.id} ({what} sha256 {mine[:12]}),"
                    f" {theirs} is {other.id} ({what} sha256 {given[:12]}); give the encoder that"
                    " made them: features of another one have another meaning"
                )
