"""The coloured shapes of the text-to-image demo as latents and text features.

    python -m demo.t2i.shapes runs/demo-t2i/images
    python -m lit_jax encode --config configs/shapes_encode.py --out runs/demo-t2i/latents

The VAE and the text encoder are those of the demo, which `make t2i-models` converts.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from lit_jax.config import EncodeConfig, SourceConfig
from lit_jax.config.encode import TextConfig


def get_config() -> ConfigDict:
    config = EncodeConfig(
        vae="runs/t2i-models/vae",
        source=SourceConfig(
            kind="folder",
            path="runs/demo-t2i/images",
            captions=("long.txt", "short.txt"),
        ),
        resolution=32,
        mirrors=False,
        text=TextConfig(encoder="runs/t2i-models/text_encoder", max_length=24, batch_size=64),
        device_batch_size=50,
    )
    return ConfigDict(dataclasses.asdict(config))
