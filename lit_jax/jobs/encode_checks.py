"""What the encode job refuses before it compiles or writes anything, and the request it leaves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_jax.config import AutoencoderConfig, EncodeConfig, SourceConfig
from lit_jax.data.latent_writer import estimated_bytes
from lit_jax.data.schema import REQUEST, SCHEMA, LatentSchema
from lit_jax.data.sources import ImageSource, open_source
from lit_jax.weights import folder
from lit_jax.weights.fingerprint import VaeIdentity, vae_identity

Say = Callable[[str], None]

# Of the config: what decides the bytes that are written. The rest may change between attempts.
REQUEST_FIELDS = (
    *("resolution", "dtype", "mirrors", "precision", "device_batch_size", "shard_size"),
)


@dataclass(frozen=True)
class Plan:
    """What the checks have established."""

    config: EncodeConfig
    out: Path
    source: ImageSource
    vae: AutoencoderConfig
    request: Mapping[str, Any]
    say: Say

    @property
    def num_images(self) -> int:
        return len(self.source)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.config.shard_size)

    def shard_range(self, shard: int) -> range:
        """The images of a shard."""
        size = self.config.shard_size
        return range(shard * size, min((shard + 1) * size, self.num_images))

    def schema(self, count: int, skipped: int) -> LatentSchema:
        side = self.config.resolution // self.vae.downsampling
        return LatentSchema(
            vae=self.request["vae"],
            dtype=self.config.dtype,
            precision=self.config.precision,
            resolution=self.config.resolution,
            latent_shape=(side, side, self.vae.latent_channels),
            mirrors=self.config.mirrors,
            count=count,
            skipped=skipped,
            classes=self.source.classes,
            captions=self.source.captions,
            source=self.request["source"],
        )


def check(config: EncodeConfig, out: Path, say: Say) -> Plan:
    """All that can be refused without compiling; writes nothing.

    Raises ValueError for a model folder that is no VAE, a resolution it cannot take, images that
    are not there, and an `out` that holds something else.
    """
    vae = check_vae(config)
    check_out(out)
    check_apart(out, config.source)
    source = open_source(config.source)
    request = make_request(config, source, vae_identity(config.vae))
    check_request(out, request)
    return Plan(config, out, source, vae, request, say)


def check_vae(config: EncodeConfig) -> AutoencoderConfig:
    """The configuration of the VAE, which must take RGB images of the resolution asked for."""
    folder.require_weights(config.vae)
    vae = folder.read_config(config.vae)
    if not isinstance(vae, AutoencoderConfig):
        raise ValueError(f"vae {config.vae} holds a {vae.family}; an AutoencoderKL is needed")
    if vae.in_channels != 3:
        raise ValueError(f"vae {config.vae} takes {vae.in_channels} channels; images have 3")
    if rest := config.resolution % vae.downsampling:
        below = config.resolution - rest
        near = f"{below} or {below + vae.downsampling}" if below else f"{vae.downsampling}"
        raise ValueError(
            f"resolution {config.resolution} is not a multiple of {vae.downsampling}, the"
            f" downsampling of {config.vae}; take {near}"
        )
    return vae


def check_out(out: Path) -> None:
    """Only an empty folder, or one with our request in it, is written into."""
    folder.check_local(out, "--out")
    folder.check_parents(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file; --out is a folder")
    # A killed run may have left the unfinished request.
    strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith(f".{REQUEST}."))
    if strangers and not (out / REQUEST).is_file():
        raise ValueError(
            f"{out} holds something else ({', '.join(strangers[:3])}); choose another --out"
        )


def check_apart(out: Path, source: SourceConfig) -> None:
    """What is written among the images would be listed with them by the next attempt."""
    images = Path(source.path).expanduser().resolve()
    if source.kind != "tfds" and out.resolve().is_relative_to(images):
        raise ValueError(f"--out {out} lies in the folder of the images, {images}; choose another")


def make_request(
    config: EncodeConfig, source: ImageSource, identity: VaeIdentity
) -> dict[str, Any]:
    """What decides the bytes that are written, for `request.json`."""
    listing = {"images": len(source), "sha256": source.listing_sha256()}
    return {
        "source": dataclasses.asdict(config.source) | listing,
        "vae": dataclasses.asdict(identity),
        **{name: getattr(config, name) for name in REQUEST_FIELDS},
    }


def check_request(out: Path, request: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the differences, when `out` was begun with another request.

    Where the images and the VAE lie, and what its folder is called, may change: hashes decide.
    """
    path = out / REQUEST
    if not path.is_file():
        return
    try:
        found = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out") from error
    wanted = _flat(request)
    places = {"source.path", "source.name", "vae.id", "vae.sha256"}
    differing = [
        f"{name} is {_short(found[name])} there, {_short(wanted[name])} now"
        if name in found and name in wanted
        else f"{name} is known to one of them only"
        for name in sorted(found.keys() | wanted.keys())
        if name not in places and (name not in found or found[name] != wanted.get(name))
    ]
    if differing:
        state = "holds the latents" if (out / SCHEMA).is_file() else "was begun with the settings"
        raise ValueError(
            f"{out} {state} of another request: {'; '.join(differing)}; choose another --out"
        )


def check_disk_space(plan: Plan, shards: list[int]) -> None:
    """Raises ValueError when the records of `shards` will not fit on the disk of `out`."""
    images = sum(len(plan.shard_range(shard)) for shard in shards)
    needed = estimated_bytes(plan.schema(0, 0), images, len(shards))
    place = next(path for path in (plan.out, *plan.out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{images:,} images need about {needed / 1e9:.2f} GB, {place} has"
            f" {free / 1e9:.2f} GB free; make room, or set dtype float16 or mirrors False"
        )


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    """Hashes by their beginning."""
    text = str(value)
    return f"{text[:12]}.." if len(text) == 64 else text
