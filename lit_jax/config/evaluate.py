"""Settings of the evaluate command."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit, require

TFDS = "tfds:"
USUAL_IMAGES = 10_000  # of a reference of the ADM suite


@dataclass(frozen=True)
class ReferenceConfig:
    """Reference of an evaluation.

    - `source`: an npz of the ADM layout (statistics, images or both), statistics that this package
      made, a folder of images, or "tfds:NAME:SPLIT", prepared in `data_dir`;
    - `resolution`: side of the squares that photographs are cropped to, 0 for images that have
      their size already;
    - `images`: so many images, at most, enter precision, recall and KID; 0 for 10,000, or for all
      whose features a file of statistics keeps;
    - `cache_dir`: where measured statistics are kept, "" for beside the reference.
    """

    source: str
    data_dir: str = ""
    resolution: int = 0
    images: int = 0
    cache_dir: str = ""

    def __post_init__(self) -> None:
        require(bool(self.source), "--reference is missing; see evaluate --help")
        limit(self, "at least 0", "resolution")
        require(
            self.images == 0 or self.images >= 4,
            f"--reference_images is {self.images}; precision and recall look at the third neighbour"
            " and need at least 4",
        )
        if self.source.startswith(TFDS):
            tfds_name(self.source)
            require(
                bool(self.data_dir) and self.resolution > 0,
                f"--reference {self.source} needs --reference_data_dir, where TFDS keeps its data"
                " sets, and --resolution",
            )
        else:
            require(
                not self.data_dir,
                f"--reference_data_dir {self.data_dir} belongs to --reference tfds:NAME:SPLIT",
            )


def tfds_name(source: str) -> tuple[str, str]:
    """Return ("imagenet2012", "validation") of "tfds:imagenet2012:validation"; ValueError
    otherwise."""
    parts = source.split(":")
    require(
        len(parts) == 3 and all(parts), f"--reference {source!r} is not of the form tfds:NAME:SPLIT"
    )
    return parts[1], parts[2]


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluate job.

    - `samples`: an npz of the ADM layout, a folder of images, or a folder made by `sample`; or
      `model`, whose samples are drawn first;
    - `inception`: model folder of the network; `inception_batch_size` images at a time over the
      devices of a host;
    - `is_splits`: of the Inception Score;
    - `out`: the JSON file with the result.
    """

    reference: ReferenceConfig
    samples: str = ""
    model: str = ""
    inception: str = ""
    out: str = ""
    is_splits: int = 10
    inception_batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("inception", "out"):
            require(bool(getattr(self, name)), f"--{name} is missing; see evaluate --help")
        # Folders of these names lie beside the output.
        require(
            not self.out.endswith((".work", ".samples")),
            f"--out {self.out}: names that end in .work or .samples are those of folders of this"
            " job; choose another, as metrics.json",
        )
        require(
            bool(self.samples) != bool(self.model),
            f"--samples {self.samples!r} and --model {self.model!r}: give exactly one of the two",
        )
        limit(self, "at least 1", "is_splits", "inception_batch_size")
