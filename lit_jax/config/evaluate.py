"""Settings of the evaluate command."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_jax.config.settings import setting
from lit_jax.config.typed import limit, require

TFDS = "tfds:"
USUAL_IMAGES = 10_000  # of a reference of the ADM suite


@dataclass(frozen=True)
class ReferenceConfig:
    """Reference of an evaluation."""

    source: str = setting(
        "",
        flag="reference",
        group="reference",
        help="npz (mu, sigma; arr_0), folder of images, or tfds:NAME:SPLIT",
    )
    data_dir: str = setting(
        "",
        flag="reference_data_dir",
        group="reference",
        help="data folder of TFDS, for tfds:NAME:SPLIT",
    )
    resolution: int = setting(
        0, group="reference", help="ADM crop of photographs of the reference; 0: no crop"
    )
    images: int = setting(
        0,
        flag="reference_images",
        group="reference",
        help="images of the reference for precision, recall and KID; 0: 10,000, or all in a file of"
        " statistics",
    )
    cache_dir: str = setting(
        "", group="reference", help="folder of measured statistics; default: beside the reference"
    )

    def check(self) -> None:
        """Raise ValueError for a reference that is missing or contradicts itself."""
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
    """Scores of samples against a reference."""

    samples: str = setting("", help="npz with arr_0, folder of images, or folder made by sample")
    model: str = setting("", help="instead of --samples: draw them first, with the flags of sample")
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    inception: str = setting("", help="model folder of the FID Inception")
    out: str = setting("", help="JSON file with the scores; the same command resumes it")
    is_splits: int = setting(10, group="scores", help="splits of the Inception Score")
    inception_batch_size: int = setting(
        64, group="scores", help="images per batch, over the devices of a process"
    )
    self_test: bool = setting(
        False, group="self test", help="check the installation; with --reference, that one"
    )

    def __post_init__(self) -> None:
        if self.self_test:
            self._check_self_test()
            return
        self.reference.check()
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

    def _check_self_test(self) -> None:
        """Refuse settings that a self test would ignore."""
        for name in ("samples", "model", "out"):
            require(
                not getattr(self, name),
                f"--{name} belongs to a real evaluation; leave it out with --self_test",
            )
        if self.reference.source:
            self.reference.check()
            require(
                bool(self.inception),
                "--inception is missing, whose statistics the --reference has",
            )
