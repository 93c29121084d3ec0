"""Images with long and short captions as PixArt-Sigma and LiT-0.6B are trained on them.

    python -m lit_jax encode --config configs/encode_t2i.py:512 --out data/t2i512_latents \\
        --config.source.path=FOLDER --config.vae=MODEL_FOLDER --config.text.encoder=MODEL_FOLDER

The texts of FOLDER/a.png are FOLDER/a.long.txt and FOLDER/a.short.txt; one of them will do. Images
keep about their aspect ratio, in one of 40 sizes. Captions are cut to 300 tokens.

512:  latents of about 64 x 64 x 4; an image takes 0.13 MB, a token of its captions 8 KB
1024: latents of about 128 x 128 x 4; 0.52 MB
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common
from lit_jax.config import EncodeConfig, SourceConfig, TextConfig


def get_config(argument: str = "512") -> ConfigDict:
    resolution = int(common.choose(argument, ("512", "1024")))
    config = EncodeConfig(
        vae="models/sdxl-vae",
        source=SourceConfig(kind="folder", path="images", captions=("long.txt", "short.txt")),
        resolution=resolution,
        mirrors=False,
        text=TextConfig(encoder="models/t5-v1_1-xxl"),
        buckets="pixart",
        # About the same memory at both resolutions. Of a shard, the last batch of every size is
        # not full, so that shards are large.
        device_batch_size=8 * 512**2 // resolution**2,
        shard_size=1024,
    )
    return ConfigDict(dataclasses.asdict(config))
