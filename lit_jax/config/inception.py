"""Which FID Inception a network is."""

from __future__ import annotations

from dataclasses import dataclass

from lit_jax.config.typed import limit


@dataclass(frozen=True)
class InceptionConfig:
    """Architecture of the Inception V3 of the FID (TensorFlow graph of 2015-12-05).

    `width_divisor` divides every channel count; 1 is the real network, larger ones are for tests.
    """

    family: str = "Inception"
    num_logits: int = 1008
    width_divisor: int = 1
    # How it is computed (see COMPUTE_FIELDS): never stored in a model folder.
    dtype: str = "float32"

    def __post_init__(self) -> None:
        limit(self, "an integer of at least 1", "num_logits", "width_divisor")
