"""ImageNet as latents of the autoencoder that DiT and LiT are trained on.

    tfds build imagenet2012 --data_dir=data/tfds --file_format=array_record
    python -m lit_jax encode --config configs/encode_imagenet.py:256 --out data/imagenet256_latents

The first command needs the two archives of ILSVRC2012, which only image-net.org gives out; TFDS
says where to put them. Images already unpacked into a folder per class:
`--config.source.kind=class_folders --config.source.name= --config.source.path=FOLDER`.

256: latents of 32 x 32 x 4; 1,281,167 images take 84 GB with their mirror images.
512: latents of 64 x 64 x 4; 336 GB.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common
from lit_jax.config import EncodeConfig, SourceConfig


def get_config(argument: str = "256") -> ConfigDict:
    resolution = int(common.choose(argument, ("256", "512")))
    config = EncodeConfig(
        vae="models/sd-vae-ft-ema",
        source=SourceConfig(kind="tfds", path="data/tfds", name="imagenet2012"),
        resolution=resolution,
        # About the same memory, and the same size of a file, at both resolutions.
        device_batch_size=32 * 256**2 // resolution**2,
        shard_size=2048 * 256**2 // resolution**2,
    )
    return ConfigDict(dataclasses.asdict(config))
