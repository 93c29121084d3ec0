"""The identity of a set of parameters: what a reported number was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from lit_jax.checkpoints.folder import CONFIG, load_model_dir, read_config, require_weights
from lit_jax.checkpoints.leaves import stored_dtypes, stored_leaves
from lit_jax.models.autoencoder.config import AutoencoderConfig
from lit_jax.models.functional import Params
from lit_jax.models.t5.config import TOKENIZER_FILE, T5Config
from lit_jax.sharding import path_string
from lit_jax.storage.files import sha256_file


def params_sha256(params: Params) -> str:
    """Return sha256 (hex) over paths, dtypes, shapes and bytes of all leaves, in the order of the
    paths.

    The same for a model folder and for the workdir it was written from.
    """
    digest = hashlib.sha256()
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


ENCODER = ("encoder", "quant_conv")
"""The parts of an autoencoder that make latents."""


@dataclass(frozen=True)
class VaeIdentity:
    """Identity of the autoencoder of a set of latents, with the scale of the latents.

    `id` is the name of its model folder, for people; `sha256` is that of all parameters
    (`params_sha256`), `encoder_sha256` that of those which make latents. `downsampling` is image
    pixels per latent pixel along an axis.
    """

    id: str
    sha256: str
    encoder_sha256: str
    scaling_factor: float
    downsampling: int
    latent_channels: int

    def require_same(self, other: VaeIdentity, ours: str, theirs: str) -> None:
        """Raise ValueError unless `other` has the same latents: encoder and scale. Decoders may
        differ, as those of sd-vae-ft-ema and sd-vae-ft-mse. `ours` and `theirs` say where the two
        come from, e.g. "the latents in data/x"."""
        mine, given = self.encoder_sha256, other.encoder_sha256
        if (mine, self.scaling_factor) != (given, other.scaling_factor):
            raise ValueError(
                f"{ours} belong to the VAE {self.id} (encoder sha256 {mine[:12]}, scale"
                f" {self.scaling_factor}), {theirs} is {other.id} (encoder sha256 {given[:12]},"
                f" scale {other.scaling_factor}); latents of one VAE are noise to another"
            )


def vae_identity(path: str | Path) -> VaeIdentity:
    """Return the identity of the autoencoder in a model folder. Reads its parameters once.

    Raises ValueError when the folder holds another kind of network.
    """
    config, params = load_model_dir(path)
    if not isinstance(config, AutoencoderConfig):
        raise ValueError(f"{path} holds a {config.family}; a VAE (AutoencoderKL) is needed")
    return VaeIdentity(
        id=Path(path).resolve().name,
        sha256=params_sha256(params),
        encoder_sha256=params_sha256({name: params[name] for name in ENCODER}),
        scaling_factor=config.scaling_factor,
        downsampling=config.downsampling,
        latent_channels=config.latent_channels,
    )


# --- text encoders ---

FLOAT_SHA256 = "float32_sha256"
"""Entry of the provenance that a conversion writes: `tree_sha256` of the numbers it read."""


class LeafSum:
    """sha256 of an array of known shape as float32, whose parts along the first axis are added in
    their order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._digest = hashlib.sha256(f"{shape}|".encode())

    def add(self, part: np.ndarray) -> None:
        self._digest.update(np.ascontiguousarray(part, np.float32).data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def tree_sha256(sums: Mapping[str, str]) -> str:
    """Return one sha256 (hex) from those of all leaves (path -> `LeafSum`), whatever their order.

    Unlike `params_sha256` it can be made while leaves pass by one after another.
    """
    lines = "".join(f"{path}|{value}\n" for path, value in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class TextEncoderIdentity:
    """Identity of the text encoder of a set of features.

    `sha256` is that of the network's numbers in float32 before anything rounded them, so that it
    is the same for what `--dtype bfloat16` or int8 make of them; `tokenizer_sha256` that of
    `spiece.model`. `id`, the name of the model folder, is for people; `weights` says what the
    numbers are stored in, as "bfloat16": features of one encoder differ a little with it. `width`
    is that of a feature.
    """

    id: str
    sha256: str
    tokenizer_sha256: str
    width: int
    weights: str

    def require_same(self, other: TextEncoderIdentity, ours: str, theirs: str) -> None:
        """Raise ValueError unless `other` is the same network with the same tokenizer. `ours` and
        `theirs` say where the two come from, e.g. "the text features in data/x"."""
        for what, mine, given in (
            ("weights", self.sha256, other.sha256),
            ("tokenizer", self.tokenizer_sha256, other.tokenizer_sha256),
        ):
            if mine != given:
                raise ValueError(
                    f"{ours} belong to the text encoder {self.id} ({what} sha256 {mine[:12]}),"
                    f" {theirs} is {other.id} ({what} sha256 {given[:12]}); give the encoder that"
                    " made them: another one means other things by the same numbers"
                )


def text_encoder_identity(path: str | Path) -> TextEncoderIdentity:
    """Return the identity of the T5 in a model folder, in no time where a conversion has recorded
    the sum of its numbers; otherwise they are read once.

    Raises ValueError when the folder holds another kind of network, or no tokenizer.
    """
    path = Path(path)
    config = read_config(path)
    if not isinstance(config, T5Config):
        raise ValueError(f"{path} holds a {config.family}; a text encoder (T5) is needed")
    require_weights(path)
    tokenizer = path / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise ValueError(
            f"{path} has no {TOKENIZER_FILE}: convert the encoder with --tokenizer FILE, or copy"
            f" its {tokenizer.name} there"
        )
    return TextEncoderIdentity(
        id=path.resolve().name,
        sha256=float_sha256(path),
        tokenizer_sha256=sha256_file(tokenizer),
        width=config.d_model,
        weights=", ".join(stored_dtypes(path)),
    )


def float_sha256(path: str | Path) -> str:
    """Return `tree_sha256` of a model folder: as its provenance says, else of its parameters, which
    are then read leaf by leaf."""
    provenance = json.loads((Path(path) / CONFIG).read_text()).get("provenance")
    if provenance and FLOAT_SHA256 in provenance:
        return str(provenance[FLOAT_SHA256])
    sums = {}
    for name, leaf in stored_leaves(path)[1].items():
        total = LeafSum(leaf.shape)
        total.add(leaf.read())
        sums[name] = total.hexdigest()
    return tree_sha256(sums)
