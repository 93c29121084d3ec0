"""The samples of an evaluation, and what is known of how they were made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_jax.evaluation.image_sets import FolderImages, ImageSet, check_levels
from lit_jax.evaluation.npz_images import LATENTS, RECORD, SAMPLES, NpzImages
from lit_jax.runs.requests import REQUEST
from lit_jax.storage import files

# What metrics.json says of the making of samples -> where sample.json says it.
SAMPLING: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "weights_sha256": ("weights_sha256",),
    "windows": ("windows",),
    "sampler": ("protocol", "sampler"),
    "steps": ("protocol", "steps"),
    "network_evaluations": ("network_evaluations",),
    "guidance_scale": ("protocol", "cfg_scale"),
    "guidance_channels": ("protocol", "cfg_channels"),
    "guidance_interval": ("protocol", "cfg_interval"),
    "seed": ("protocol", "seed"),
    "label_policy": ("label_policy",),
    "labels": ("labels",),
    "vae": ("vae",),
    "dtype": ("dtype",),
    "devices": ("devices",),
    "versions": ("versions",),
}


@dataclass(frozen=True)
class Samples:
    """`sampling` has every row of SAMPLING, None where nothing is known of it; `record` is the path
    of the sample.json it comes from, `record_sha256` the hash of that file."""

    images: ImageSet
    sampling: dict[str, Any]
    record: str | None
    record_sha256: str | None
    warnings: list[str]


def open_samples(given: str | Path) -> Samples:
    """Return an npz of the ADM layout, a folder of images, or a folder made by `sample`.

    Raises ValueError for what is missing, not finished, or no set of images.
    """
    path = Path(given).expanduser()
    if path.is_dir() and (path / RECORD).exists():
        if not (path / SAMPLES).exists():
            raise ValueError(
                f"{path} has no {SAMPLES}, only latents: sample with --vae to get images"
                if (path / LATENTS).exists()
                else f"{path} has a {RECORD}, but no {SAMPLES}; sample again"
            )
        images: ImageSet = NpzImages(path / SAMPLES)
        record: Path | None = path / RECORD
    elif path.is_dir():
        if (path / SAMPLES).exists() or (path / REQUEST).exists():
            raise ValueError(
                f"{path} is not finished: it has no {RECORD}; run the same sample command again"
            )
        images, record = FolderImages(path), None
    elif path.is_file():
        images = NpzImages(path)
        beside = path.with_name(RECORD)
        record = beside if path.name == SAMPLES and beside.exists() else None
    else:
        raise ValueError(f"--samples {given} does not exist; give an npz or a folder of images")
    sampling, warnings = read_sampling(record, images)
    warnings += check_levels(images)
    if images.lossy:
        warnings.append(
            f"{images.lossy:,} of the samples are in a lossy format, which changes their features;"
            " store PNG"
        )
    if images.channels == 1:
        warnings.append("the samples are grey; they are evaluated with three equal channels")
    if record is None:
        return Samples(images, sampling, None, None, warnings)
    return Samples(images, sampling, str(record), files.sha256_file(record), warnings)


def read_sampling(record: Path | None, images: ImageSet) -> tuple[dict[str, Any], list[str]]:
    """Return how the samples were made, and a warning for what is not known."""
    unknown: dict[str, Any] = dict.fromkeys(SAMPLING)
    if record is None:
        return unknown, [
            f"{images.name} does not say how the samples were made: model, weights, sampler, steps,"
            " guidance, VAE, dtype, seed and label policy are null"
        ]
    try:
        content = json.loads(record.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{record} is not JSON: {error}") from error
    found, missing = unknown, []
    for name, keys in SAMPLING.items():
        value: Any = content
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                missing.append(name)
                value = None
                break
            value = value[key]
        found[name] = value
    warnings = [f"{record} does not say: {', '.join(missing)}"] if missing else []
    if isinstance(content, dict) and "count" in content and content["count"] != images.count:
        raise ValueError(
            f"{record} speaks of {content['count']} samples, {images.name} holds {images.count};"
            " they do not belong together"
        )
    if found["dtype"] not in (None, "float32"):
        warnings.append(f"the samples were drawn in {found['dtype']}; compare with float32 once")
    return found, warnings
