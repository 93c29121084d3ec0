"""`ModelFolder`: a model folder or training workdir, opened once.

A model folder holds `config.json` (architecture, provenance, identity) and `params/` (orbax), and
the tokenizer of a text encoder. A training workdir (`config.json` and `checkpoints/`) is read the
same way; its moving-average parameters are the model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Mesh

from lit_jax.checkpoints.identity import (
    FLOAT_SHA256,
    IDENTITY,
    TEXT_ENCODER,
    VAE,
    ParamsSum,
    TextEncoderIdentity,
    VaeIdentity,
    leaf_sha256,
    tree_sha256,
)
from lit_jax.checkpoints.stored import (
    CONFIG,
    StoredArrays,
    abstract_leaf,
    read_content,
    stored_config,
)
from lit_jax.checkpoints.streaming import UnreadLeaf, batches
from lit_jax.config import from_mapping
from lit_jax.models import functional
from lit_jax.models.autoencoder.config import ENCODER
from lit_jax.models.dit.model import dtype_name
from lit_jax.models.family import Family
from lit_jax.models.registry import family_of
from lit_jax.models.t5.config import TOKENIZER_FILE
from lit_jax.runs.hosts import on_first_process
from lit_jax.storage.files import sha256_file

NEEDED = {
    "denoiser": "a denoiser such as a DiT",
    "label": "a denoiser on class labels such as a DiT (for captions: `generate`)",
    "caption": "a denoiser on captions such as a PixArt (for class labels: `sample`)",
    "AutoencoderKL": "a VAE (AutoencoderKL)",
    "T5": "a text encoder (T5)",
    "Inception": "the FID Inception",
}
"""Kind of network -> its description in an error. A kind is a family, a condition or "denoiser"."""


class ModelFolder:
    """One network on disk.

    Attributes: `path`; `config`, `family`; `provenance`; `vae` and `text_encoder`, the recorded
    identities of the networks that it was trained with, or None.
    """

    def __init__(
        self,
        path: str | Path,
        expect: str = "",
        flag: str = "",
        *,
        finished: bool = True,
    ) -> None:
        """Read `config.json` and look for finished parameters, without reading any.

        `expect` is a row of NEEDED, `flag` the setting that names the folder, for messages;
        `finished=False` accepts a workdir without a checkpoint. Raises ValueError for a folder that
        is incomplete, holds another kind of network, or whose fields are not exactly ours.
        """
        self.path = Path(path).absolute()
        self._name = str(path)
        content = read_content(Path(path))
        self.config = stored_config(Path(path), content["model"])
        self.family: Family = family_of(self.config)
        if expect and not self.is_a(expect):
            name = f"{flag} {path}" if flag else str(path)
            raise ValueError(
                f"{name} holds {article(self.config.family)}; {NEEDED[expect]} is needed"
            )
        self.provenance: Mapping[str, Any] = content.get("provenance") or {}
        self.vae: VaeIdentity | None = self._recorded(content, VAE, VaeIdentity)
        self.text_encoder: TextEncoderIdentity | None = self._recorded(
            content, TEXT_ENCODER, TextEncoderIdentity
        )
        self._identity: Mapping[str, str] = content.get(IDENTITY) or {}
        self._stored = StoredArrays(self.path, str(path))
        if finished:
            assert self._stored.location

    def __str__(self) -> str:
        return self._name

    def is_a(self, kind: str) -> bool:
        """Return True for a network of that kind, a row of NEEDED."""
        condition = self.family.condition
        return kind in (self.family.name, condition) or (kind == "denoiser" and bool(condition))

    def require_companions(
        self,
        vae: ModelFolder | None = None,
        text_encoder: ModelFolder | None = None,
        flags: tuple[str, str] = ("--vae", "--text_encoder"),
    ) -> None:
        """Raise ValueError for a VAE or text encoder other than the recorded one, or of another
        number of channels."""
        config: Any = self.config
        if vae is not None:
            _require_equal(
                f"{flags[0]} {vae} has latents of",
                vae.config.latent_channels,  # type: ignore[union-attr]
                f"{self} has in_channels",
                config.in_channels,
                "the VAE",
            )
            if self.vae is not None:
                self.vae.require_same(
                    vae.vae_identity, f"the latents of {self}", f"{flags[0]} {vae}"
                )
        if text_encoder is not None:
            _require_equal(
                f"{flags[1]} {text_encoder} has features of",
                text_encoder.config.d_model,  # type: ignore[union-attr]
                f"{self} has caption_channels",
                config.caption_channels,
                "the encoder",
            )
            if self.text_encoder is not None:
                self.text_encoder.require_same(
                    text_encoder.text_encoder_identity,
                    f"the captions of {self}",
                    f"{flags[1]} {text_encoder}",
                )

    # --- parameters ---

    def params(self, mesh: Mesh | None = None, dtype: Any = "float32") -> functional.Params:
        """Read the parameters: numpy arrays, or jax arrays placed on `mesh` by the rules of the
        family, in which case every process reads only its own shards.

        They are stored in float32 or bfloat16 and arrive in `dtype`; int8 matrices stay int8.
        Raises ValueError for arrays that are damaged or not those of the configuration.
        """
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, held_dtype(leaf.dtype, dtype)),
            functional.abstract_params(self.config),
        )
        self._stored.check_shapes(target)
        if mesh is None:
            arguments = jax.tree.map(
                lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), target
            )
        else:
            arguments = jax.tree.map(
                lambda leaf, place: ocp.ArrayRestoreArgs(
                    sharding=place, global_shape=leaf.shape, dtype=leaf.dtype
                ),
                target,
                functional.shardings(self.config, mesh),
            )
        return self._stored.restore(target, arguments)

    def leaves(self) -> dict[str, UnreadLeaf]:
        """Return path -> leaf, each read as float32 (int8 as it is) when its numbers are needed."""
        abstract = traverse_util.flatten_dict(functional.abstract_params(self.config), sep="/")
        return {
            path: UnreadLeaf(tuple(leaf.shape), leaf.dtype, self._reader(path, leaf))
            for path, leaf in abstract.items()
        }

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (path, array as in `leaves`) in the order of the paths, a few arrays in memory at a
        time."""
        self._stored.check_shapes(functional.abstract_params(self.config))
        leaves = sorted(self.leaves().items())
        for batch in batches([leaf.nbytes for _, leaf in leaves]):
            flat = {leaves[n][0]: abstract_leaf(leaves[n][1]) for n in batch}
            restored = traverse_util.flatten_dict(self._stored.restore_flat(flat), sep="/")
            yield from ((path, restored[path]) for path in flat)

    def stored_dtypes(self) -> tuple[str, ...]:
        """Return the types on disk, as ("bfloat16",)."""
        stored = jax.tree.leaves(self._stored.metadata)
        return tuple(sorted({str(np.dtype(leaf.dtype)) for leaf in stored}))

    # --- identity ---

    @functools.cached_property
    def sha256(self) -> str:
        """sha256 (hex) over paths, dtypes, shapes and bytes of all parameters in float32: recorded
        at conversion, otherwise computed leaf by leaf. The same for a model folder and for the
        workdir it was written from."""
        return self._identity.get("sha256") or self._sums[0]

    @functools.cached_property
    def vae_identity(self) -> VaeIdentity:
        """Identity of this autoencoder."""
        config: Any = self.config
        return VaeIdentity(
            id=self.path.resolve().name,
            sha256=self.sha256,
            encoder_sha256=self._identity.get("encoder_sha256") or self._sums[1],
            scaling_factor=config.scaling_factor,
            downsampling=config.downsampling,
            latent_channels=config.latent_channels,
        )

    @functools.cached_property
    def text_encoder_identity(self) -> TextEncoderIdentity:
        """Identity of this text encoder. Raises ValueError without a tokenizer."""
        tokenizer = self.path / TOKENIZER_FILE
        if not tokenizer.is_file():
            raise ValueError(
                f"{self} has no {TOKENIZER_FILE}: convert the encoder with --tokenizer FILE, or"
                f" copy its {tokenizer.name} there"
            )
        config: Any = self.config
        return TextEncoderIdentity(
            id=self.path.resolve().name,
            sha256=self.float_sha256,
            tokenizer_sha256=sha256_file(tokenizer),
            width=config.d_model,
            weights=", ".join(self.stored_dtypes()),
        )

    @functools.cached_property
    def float_sha256(self) -> str:
        """`tree_sha256` of the numbers before any rounding, as recorded; otherwise of these."""
        if FLOAT_SHA256 in self.provenance:
            return str(self.provenance[FLOAT_SHA256])
        return on_first_process(
            lambda: tree_sha256({path: leaf_sha256(array) for path, array in self.arrays()})
        )

    @functools.cached_property
    def _sums(self) -> tuple[str, str]:
        """(sha256 of all parameters, of those which make latents), computed on one process."""

        def compute() -> tuple[str, str]:
            whole, encoder = ParamsSum(), ParamsSum()
            for path, array in self.arrays():
                whole.add(path, array)
                if path.split("/")[0] in ENCODER:
                    encoder.add(path, array)
            return whole.hexdigest(), encoder.hexdigest()

        return on_first_process(compute)

    # --- files ---

    def _recorded(self, content: Mapping[str, Any], entry: str, kind: type[Any]) -> Any:
        if content.get(entry) is None:
            return None
        return from_mapping(kind, content[entry], f'"{entry}" of {Path(str(self)) / CONFIG}')

    def _reader(self, path: str, leaf: Any) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            found = self._stored.restore_flat({path: abstract_leaf(leaf)})
            array: np.ndarray = traverse_util.flatten_dict(found, sep="/")[path]
            if array.shape != leaf.shape:
                raise ValueError(
                    f"{self}: {path} has shape {array.shape}, its {CONFIG} says {leaf.shape}"
                )
            return array

        return read


def article(name: str) -> str:
    """Return a name with its indefinite article: a DiT, an AutoencoderKL."""
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def _require_equal(a: str, value: int, b: str, limit: int, network: str) -> None:
    if value != limit:
        raise ValueError(
            f"{a} {value} channels, {b} {limit}; give {network} that it was trained with"
        )


def held_dtype(dtype: Any, param_dtype: Any) -> Any:
    """Return the type that a parameter of type `dtype` in the network is held in: `param_dtype`,
    except for integers and their scales, which stay what they are."""
    return dtype_name(param_dtype) if dtype == np.float32 else dtype


def load_model(model_dir: str | Path, dtype: Any = "float32", param_dtype: Any = "float32") -> Any:
    """Load the network of a model folder or training workdir, computing in `dtype`.

    The stored network comes back: DiT, PixArt, AutoencoderKL, T5Encoder or FIDInception. Parameters
    are held in `param_dtype`; bfloat16 halves the memory of a large frozen network such as T5. Both
    are a name, a numpy dtype or a scalar type like `jnp.bfloat16`. Raises ValueError for another
    dtype, and for a folder that is incomplete or damaged.
    """
    dtype = dtype_name(dtype)
    folder = ModelFolder(model_dir)
    params = jax.tree.map(jax.numpy.asarray, folder.params(dtype=param_dtype))
    return functional.with_params(dataclasses.replace(folder.config, dtype=dtype), params)


def identity_entries(folder: ModelFolder) -> dict[str, str]:
    """Return the "identity" group that a conversion records in `config.json`."""
    entries = {"sha256": folder.sha256}
    if folder.family.name == "AutoencoderKL":
        entries["encoder_sha256"] = folder.vae_identity.encoder_sha256
    return entries
