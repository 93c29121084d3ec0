"""Features of images by the FID Inception, on all devices of this host.

Letters: B images of a batch, H height, W width, D features of the pool, L logits, S features of
the sFID (17 x 17 x 7, pixel by pixel).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lit_jax import sharding
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.config import MeshConfig
from lit_jax.evaluation.image_sets import ImageSet
from lit_jax.models import functional
from lit_jax.models.inception.config import InceptionConfig
from lit_jax.models.inception.model import SPATIAL_CHANNELS

# The sFID reads a grid of 17 x 17 positions.
SPATIAL_FEATURES = 17 * 17 * SPATIAL_CHANNELS


class Features(NamedTuple):
    """Features that the scores need, float32."""

    pool_BxD: np.ndarray
    logits_BxL: np.ndarray  # without bias, as the ADM suite
    spatial_BxS: np.ndarray


@dataclass(frozen=True)
class Network:
    """An Inception with its parameters in host memory. `sha256` is that of the parameters."""

    name: str
    config: InceptionConfig
    params: functional.Params
    sha256: str

    @property
    def dimensions(self) -> int:
        """D, the features of the pool."""
        return int(self.params["fc"]["kernel"].shape[0])

    def identity(self) -> dict[str, Any]:
        """Return what features belong to: those of two networks cannot be compared."""
        return {"sha256": self.sha256, "preprocessing": self.config.preprocessing}


def read_network(path: str | Path) -> Network:
    """Return the Inception in a model folder. Raises ValueError when it holds another kind of
    network."""
    folder = ModelFolder(path, expect="Inception", flag="--inception")
    config: Any = folder.config
    return Network(str(path), config, folder.params(), folder.sha256)


class FeatureExtractor:
    """Runs a network over image sets in batches of one compiled size.

    `batch_size` images at a time, rounded up to a multiple of the devices of this host. Hosts work
    on their own: nothing here is a collective operation. Compiles on first use, once per size of
    images.
    """

    def __init__(self, network: Network, batch_size: int) -> None:
        mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.devices = f"{mesh.size} x {jax.local_devices()[0].device_kind}"
        self._params = jax.device_put(network.params, functional.shardings(network.config, mesh))
        self._placement = sharding.batch_sharding(mesh)
        apply = functional.apply_fn(network.config)

        def run(params: functional.Params, images_BxHxWx3: jax.Array) -> tuple[jax.Array, ...]:
            features = apply(params, images_BxHxWx3)
            spatial_BxS = features.spatial.reshape(len(images_BxHxWx3), SPATIAL_FEATURES)
            return features.pool3, features.logits_unbiased, spatial_BxS

        self._run = jax.jit(run, out_shardings=self._placement)

    def features(
        self, images: ImageSet, first: int, last: int
    ) -> Iterator[tuple[np.ndarray, Features]]:
        """Yield images uint8 [B, H, W, 3] and features of images first .. last - 1, batch by batch.

        The next batch is read, and the one before computed, while the caller works. Raises
        ValueError, naming the image, for features that are not finite.
        """
        starts = range(first, last, self.batch_size)
        spans = [(start, min(start + self.batch_size, last)) for start in starts]
        running: tuple[int, np.ndarray, tuple[jax.Array, ...]] | None = None
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(images.read, *spans[0])
            for number, (start, _) in enumerate(spans):
                batch_BxHxWx3 = coming.result()
                if number + 1 < len(spans):
                    coming = reader.submit(images.read, *spans[number + 1])
                launched = start, batch_BxHxWx3, self._launch(batch_BxHxWx3)
                if running is not None:
                    yield self._collect(images, *running)
                running = launched
        if running is not None:
            yield self._collect(images, *running)

    def _launch(self, batch_BxHxWx3: np.ndarray) -> tuple[jax.Array, ...]:
        # A short batch is filled up with its last image, so that nothing is compiled twice.
        index = np.minimum(np.arange(self.batch_size), len(batch_BxHxWx3) - 1)
        return self._run(self._params, jax.device_put(batch_BxHxWx3[index], self._placement))

    def _collect(
        self,
        images: ImageSet,
        start: int,
        batch_BxHxWx3: np.ndarray,
        outputs: tuple[jax.Array, ...],
    ) -> tuple[np.ndarray, Features]:
        found = Features(*(np.asarray(array)[: len(batch_BxHxWx3)] for array in outputs))
        for name, array in found._asdict().items():
            finite = np.isfinite(array).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{images.where(start + int(np.argmin(finite)))} has NaN or infinite features"
                    f" ({name}); the network of --inception is damaged"
                )
        return batch_BxHxWx3, found
