"""Small pictures in pixel space, without a VAE: LiT-S/2 at 32 x 32 x 3 on images of your own.

    python -m lit_jax train --config configs/pixels_folder.py:classes --workdir runs/pixels \\
        --config.data.name=FOLDER --config.model.overrides.num_classes=10

classes: FOLDER holds one folder per class, and images in those; num_classes is their number
images:  all images below FOLDER, an unconditional model
tfds:    a TFDS data set prepared as ArrayRecord, such as cifar10 in data/tfds

Larger or smaller images: model.overrides.input_size; grey ones: model.overrides.in_channels=1.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

KINDS = {"classes": "class_folders", "images": "folder", "tfds": "tfds"}


def get_config(argument: str = "classes") -> ConfigDict:
    what = common.choose(argument, tuple(KINDS))
    config = common.base()
    config.model.name = "LiT-S/2"
    config.model.overrides = ConfigDict(
        {
            "input_size": 32,
            "in_channels": 3,
            "num_classes": 0 if what == "images" else 10,
            "class_dropout_prob": 0.1,
        }
    )
    config.data.kind = KINDS[what]
    config.data.name = "cifar10" if what == "tfds" else "images"
    config.data.data_dir = "data/tfds" if what == "tfds" else "data"
    config.data.flip = True
    config.data.workers = 4
    config.total_steps = 100_000
    config.batch_size = 128
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 1_000
    config.optimizer.clip_norm = 1.0
    config.checkpoint_every = 10_000
    config.sample.every = 10_000
    return config
