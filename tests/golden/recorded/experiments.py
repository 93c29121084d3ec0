"""The experiments of the recorded jobs, spelt out: what configs/ holds may change."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "train": {
        "seed": 0,
        "total_steps": 6,
        "batch_size": 4,
        "model": {
            "name": "LiT",
            "overrides": {
                "input_size": 8,
                "hidden_size": 8,
                "depth": 2,
                "num_heads": 2,
                "num_classes": 2,
                "kernel_size": 3,
            },
        },
        "data": {"name": "latents", "data_dir": ".", "flip": True, "vae": "models/vae"},
        "distill": {"teacher": "models/dit", "attention_weight": 0.1},
        "inherit": {"source": "models/dit"},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "clip_norm": 1.0},
        "ema": {"decay": 0.5},
        "log_every": 1,
    },
    "train_text": {
        "total_steps": 6,
        "batch_size": 2,
        "model": {
            "name": "PixArt",
            "overrides": {
                "input_size": 8,
                "hidden_size": 8,
                "depth": 1,
                "num_heads": 2,
                "caption_channels": 8,
                "model_max_length": 8,
            },
        },
        "data": {
            "name": "captions",
            "data_dir": ".",
            "vae": "models/vae",
            "caption_weights": (0.6, 0.4),
        },
        "inherit": {"source": "models/pixart", "policy": "all"},
        "optimizer": {"learning_rate": 1e-3},
        "ema": {"decay": 0.5},
        "log_every": 1,
    },
    "encode": {
        "vae": "models/vae",
        "source": {"kind": "class_folders", "path": "images"},
        "resolution": 16,
        "device_batch_size": 2,
        "shard_size": 4,
        "workers": 2,
    },
    "encode_text": {
        "vae": "models/vae",
        "source": {"kind": "folder", "path": "captioned", "captions": ("long.txt", "short.txt")},
        "resolution": 16,
        "mirrors": False,
        "text": {"encoder": "models/t5", "max_length": 8},
        "device_batch_size": 2,
        "workers": 2,
    },
    "self_generate": {
        "model": "models/dig",
        "vae": "models/vae",
        "num_samples": 4,
        "steps": "3",
        "cfg_scale": 1.5,
        "batch_size": 2,
        "shard_size": 2,
    },
}


def get_config(name: str) -> ConfigDict:
    """Return the experiment `name`, the word after the colon of `--config`."""
    return ConfigDict(EXPERIMENTS[name])
