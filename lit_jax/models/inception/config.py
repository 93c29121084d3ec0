"""Configuration of a FID Inception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lit_jax.config.typed import limit, require, unknown_name


class Preprocessing(NamedTuple):
    """Conversion of grey levels 0..255 of any size to the input of the network.

    half_pixel  whether the bilinear grid is centred on pixels (else on their upper left corners)
    centre      grey level that becomes 0
    scale       grey levels per unit
    """

    half_pixel: bool
    centre: float
    scale: float


PREPROCESSINGS = {
    # The TensorFlow graph of 2015-12-05, which the ADM evaluation suite runs: published FIDs.
    "tf1": Preprocessing(half_pixel=False, centre=128.0, scale=128.0),
    # pytorch-fid: [0, 1], torch's bilinear resizing without antialiasing, then [-1, 1].
    "pytorch_fid": Preprocessing(half_pixel=True, centre=127.5, scale=127.5),
}

# Greatest common divisor of the channel counts of Inception V3.
WIDTH_UNIT = 16


@dataclass(frozen=True)
class InceptionConfig:
    """Architecture of the Inception V3 of the FID (TensorFlow graph of 2015-12-05).

    `preprocessing` is a row of PREPROCESSINGS. It belongs to the metric: features of one are not
    comparable with statistics of the other. `width_divisor` divides every channel count; 1 is the
    real network, larger ones are for tests.
    """

    family: str = "Inception"
    preprocessing: str = "tf1"
    num_logits: int = 1008
    width_divisor: int = 1
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        limit(self, "an integer of at least 1", "num_logits", "width_divisor")
        if self.preprocessing not in PREPROCESSINGS:
            raise unknown_name("preprocessing", self.preprocessing, PREPROCESSINGS)
        require(
            WIDTH_UNIT % self.width_divisor == 0,
            f"width_divisor is {self.width_divisor}; it must divide {WIDTH_UNIT}, because the"
            f" network has widths like {WIDTH_UNIT * 3} and {WIDTH_UNIT * 5}",
        )
        require(
            self.dtype == "float32",
            f"dtype is {self.dtype!r}; features are compared with statistics of float32 features,"
            " and rounding changes the score: use dtype='float32'",
        )
