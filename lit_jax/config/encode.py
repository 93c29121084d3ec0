"""Settings of the encode command."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require, unknown_name

LATENT_DTYPES = ("float32", "float16")
TEXT_DTYPES = ("float16", "bfloat16", "float32")
PRECISIONS = ("default", "high", "highest")
BUCKETS = ("", "pixart")
"""Tables of aspect ratios; "" is the square."""

_KIND = re.compile(r"[A-Za-z0-9_-]+")


def caption_kind(name: str) -> str:
    """Return what captions in files that end in `name` are called: "long.txt" -> "long", and "txt"
    is "txt". Names of features stay what they are. A kind has no dot, so that it may be a key of a
    config."""
    return name.removesuffix(".txt")


@dataclass(frozen=True)
class SourceConfig:
    """Source of images.

    `kind` is a row of `data.sources.KINDS`:

    - "tfds": a prepared TFDS data set in ArrayRecord, `name` ("imagenet2012", or "name/config",
      or "name/config/1.0.0") under the data folder `path`; `split` is read;
    - "class_folders": `path` holds a folder of images per class;
    - "folder": all images below `path`.

    `captions` names the texts of an image, any number of them. In a folder these are ends of file
    names: ("txt",) is `a/b.txt` for `a/b.png`, ("long.txt", "short.txt") are `a/b.long.txt` and
    `a/b.short.txt`. In a TFDS data set they are features of kind Text.

    Folders have one split, which is called `split` in what is written.
    """

    kind: str = setting(help="tfds, class_folders or folder")
    path: str = setting(help="folder of the images, or data folder of TFDS")
    name: str = setting("", help="data set of TFDS")
    split: str = setting("train", help="split that is read")
    captions: tuple[str, ...] = setting(
        (), help="ends of the names of caption files, or features of TFDS"
    )

    def __post_init__(self) -> None:
        require(bool(self.path), "source.path is empty; give the folder that holds the images")
        require(
            self.split.replace("_", "a").isalnum(),
            f"source.split is {self.split!r}; it must be the name of a whole split, as 'train'",
        )
        require(
            self.kind != "class_folders" or not self.captions,
            f"source.captions {self.captions} belong to source.kind 'folder' or 'tfds', not to"
            f" {self.kind!r}",
        )
        require(
            self.kind == "tfds" or not self.name,
            f"source.name {self.name!r} belongs to source.kind 'tfds', not to {self.kind!r}",
        )
        for name in self.captions:
            require(
                _KIND.fullmatch(caption_kind(name)) is not None,
                f"source.captions holds {name!r}; it must be made of letters, digits, _ and -, and"
                " may end in .txt, as 'txt' or 'long.txt'",
            )
        require(
            len(set(self.caption_kinds)) == len(self.captions),
            f"source.captions {self.captions} names a kind of captions twice",
        )

    @property
    def caption_kinds(self) -> tuple[str, ...]:
        """The names that training uses."""
        return tuple(caption_kind(name) for name in self.captions)


@dataclass(frozen=True)
class TextConfig:
    """Text features of captions. `encoder` is the model folder of a T5 encoder, "" for none:
    captions are then kept as text only. A caption is cut to `max_length` tokens; `dtype` is that of
    the stored features (float16 ends at 65504, which the largest encoders may exceed); `batch_size`
    is captions per device and step."""

    encoder: str = setting("", help="model folder of a T5; empty: captions stay text")
    max_length: int = setting(300, help="tokens per caption")
    dtype: str = setting("float16", help="stored features: float16, bfloat16 or float32")
    batch_size: int = setting(8, help="captions per device and step")

    def __post_init__(self) -> None:
        limit(self, "an integer of at least 1", "text.max_length", "text.batch_size")
        if self.dtype not in TEXT_DTYPES:
            raise unknown_name("text.dtype", self.dtype, TEXT_DTYPES)


@dataclass(frozen=True)
class EncodeConfig:
    """An encode job; `configs/encode_*.py` build it as a ConfigDict.

    What decides the bytes that are written: `source`; `vae`, the model folder of an AutoencoderKL;
    `resolution` (pixels along a side); `dtype` of the stored moments; `mirrors` (moments of the
    mirror image, too); `text`, by what captions become features; `buckets`, "" for squares or
    "pixart" for the sizes of `data.buckets`, by the aspect ratio of each image; `shard_size`
    (images per file); and, in the last bits, `device_batch_size` (images per device and step) and
    `precision` (of float32 products, a name of `jax.default_matmul_precision`; "default" is TF32
    on recent GPUs, bfloat16 passes on TPUs).

    `workers` is the number of threads of a host that decode and crop. A run ends with an error
    when more than `max_skipped_fraction` of the images (rounded up) could not be used.
    """

    source: SourceConfig
    vae: str = setting(help="model folder of the VAE")
    resolution: int = setting(256, help="side of the square images in pixels")
    dtype: str = setting("float32", help="stored moments: float32 or float16")
    mirrors: bool = setting(True, help="encode mirror images, too")
    text: TextConfig = field(default_factory=TextConfig)
    buckets: str = setting("", help="table of aspect ratios: pixart; empty: squares")
    precision: str = setting("highest", help="precision of float32 products")
    device_batch_size: int = setting(16, help="images per device and step")
    shard_size: int = setting(2048, help="images per shard: the cost of a kill")
    workers: int = setting(8, help="threads that read and decode")
    max_skipped_fraction: float = setting(0.01, help="share of images that may be skipped")

    def __post_init__(self) -> None:
        require(bool(self.vae), "vae is empty; give the model folder of an AutoencoderKL")
        limit(self, "at least 1", "resolution", "device_batch_size", "shard_size", "workers")
        limit(self, "in [0, 1)", "max_skipped_fraction")
        tables = (("dtype", LATENT_DTYPES), ("precision", PRECISIONS), ("buckets", BUCKETS))
        for kind, known in tables:
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
        require(
            bool(self.source.captions) or not self.text.encoder,
            f"text.encoder is {self.text.encoder}, but there are no captions; name them in"
            " source.captions, as ('txt',) for a.txt beside a.png",
        )
        require(
            not self.mirrors or not self.text.encoder,
            "mirrors is True, but captions do not fit mirror images ('left' and 'right'); set"
            " mirrors=False",
        )
