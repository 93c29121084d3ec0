"""A folder of images as latents, at 256 x 256.

    python -m lit_jax encode --config configs/encode_folder.py:classes --out data/my_latents \\
        --config.source.path=FOLDER --config.vae=MODEL_FOLDER

classes:  FOLDER holds one folder per class, and images in those
images:   all images below FOLDER, without labels
captions: as `images`, and the text of a.png is in a.txt beside it
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from configs import common
from lit_jax.config import EncodeConfig, SourceConfig


def get_config(argument: str = "classes") -> ConfigDict:
    what = common.choose(argument, ("classes", "images", "captions"))
    config = EncodeConfig(
        vae="models/sd-vae-ft-ema",
        source=SourceConfig(
            kind="class_folders" if what == "classes" else "folder",
            path="images",
            captions=what == "captions",
        ),
    )
    return ConfigDict(dataclasses.asdict(config))
