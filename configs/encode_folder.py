"""A folder of images as latents, at 256 x 256.

    python -m lit_jax encode --config configs/encode_folder.py:classes --out data/my_latents \\
        --config.source.path=FOLDER --config.vae=MODEL_FOLDER

classes:  FOLDER holds one folder per class, and images in those
images:   all images below FOLDER, without labels
captions: as `images`, and the text of a.png is in a.txt beside it. VAE and text encoder are those
          of PixArt-Sigma: latents of SDXL's VAE, features of T5 v1.1 XXL. Larger images in their
          own aspect ratio, and several captions for each, are in encode_t2i.py
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common
from lit_jax.config import EncodeConfig, SourceConfig, TextConfig


def get_config(argument: str = "classes") -> ConfigDict:
    what = common.choose(argument, ("classes", "images", "captions"))
    config = EncodeConfig(
        vae="models/sd-vae-ft-ema",
        source=SourceConfig(kind="class_folders" if what == "classes" else "folder", path="images"),
    )
    if what == "captions":
        config = dataclasses.replace(
            config,
            vae="models/sdxl-vae",
            source=dataclasses.replace(config.source, captions=("txt",)),
            text=TextConfig(encoder="models/t5-v1_1-xxl"),
            mirrors=False,  # captions do not fit mirror images
        )
    return ConfigDict(dataclasses.asdict(config))
