"""What the encode job turns into latents, and how."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit, require, unknown_name

LATENT_DTYPES = ("float32", "float16")
PRECISIONS = ("default", "high", "highest")


@dataclass(frozen=True)
class SourceConfig:
    """Where images come from.

    `kind` is a row of `data.sources.KINDS`:

    - "tfds": a prepared TFDS data set in ArrayRecord, `name` ("imagenet2012", or "name/config",
      or "name/config/1.0.0") under the data folder `path`; `split` is read;
    - "class_folders": `path` holds a folder of images per class;
    - "folder": all images below `path`; with `captions`, each has its text beside it in a file of
      the same name that ends in .txt.

    Folders have one split, which is called `split` in what is written.
    """

    kind: str
    path: str
    name: str = ""
    split: str = "train"
    captions: bool = False

    def __post_init__(self) -> None:
        require(bool(self.path), "source.path is empty; give the folder that holds the images")
        require(
            self.split.replace("_", "a").isalnum(),
            f"source.split is {self.split!r}; it must be the name of a whole split, as 'train'",
        )
        require(
            self.kind == "folder" or not self.captions,
            f"source.captions belongs to source.kind 'folder', not to {self.kind!r}",
        )
        require(
            self.kind == "tfds" or not self.name,
            f"source.name {self.name!r} belongs to source.kind 'tfds', not to {self.kind!r}",
        )


@dataclass(frozen=True)
class EncodeConfig:
    """An encode job; `configs/encode_*.py` build it as a ConfigDict.

    What decides the bytes that are written: `source`; `vae`, the model folder of an AutoencoderKL;
    `resolution` (pixels along a side); `dtype` of the stored moments; `mirrors` (moments of the
    mirror image, too); `shard_size` (images per file); and, in the last bits,
    `device_batch_size` (images per device and step) and `precision` (of float32 products, a name
    of `jax.default_matmul_precision`; "default" is TF32 on recent GPUs, bfloat16 passes on TPUs).

    `workers` is the number of threads of a host that decode and crop. A run ends with an error
    when more than `max_skipped_fraction` of the images (rounded up) could not be used.
    """

    vae: str
    source: SourceConfig
    resolution: int = 256
    dtype: str = "float32"
    mirrors: bool = True
    precision: str = "highest"
    device_batch_size: int = 16
    shard_size: int = 2048
    workers: int = 8
    max_skipped_fraction: float = 0.01

    def __post_init__(self) -> None:
        require(bool(self.vae), "vae is empty; give the model folder of an AutoencoderKL")
        limit(self, "at least 1", "resolution", "device_batch_size", "shard_size", "workers")
        limit(self, "in [0, 1)", "max_skipped_fraction")
        for kind, known in (("dtype", LATENT_DTYPES), ("precision", PRECISIONS)):
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
