"""What the tests of training and of the jobs share: tiny models, a run's config, real processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config import DataConfig, ModelSpec, TrainConfig
from lit_jax.models import functional, registry
from lit_jax.models.dit.config import DiTConfig

ROOT = Path(__file__).resolve().parents[2]

# The digits of the data set, in 4 tokens.
SIZE = {
    "input_size": 8,
    "patch_size": 4,
    "in_channels": 1,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 10,
}


def random_params(config: DiTConfig, seed: int = 0, scale: float = 0.2) -> Any:
    """Normal parameters everywhere: the zeros of a fresh model would hide what depends on them."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (scale * generator.standard_normal(leaf.shape)).astype(np.float32),
        functional.abstract_params(config),
    )


def save_model(path: Path, name: str = "DiT", **overrides: Any) -> Path:
    """A model folder of random parameters."""
    config = registry.model_config(name, **(SIZE | overrides))
    save_model_dir(path, config, random_params(config), {"source": "random"})
    return path


def run_config(data_dir: str | Path, num_classes: int = 10, **changes: Any) -> TrainConfig:
    """A short run of the tiny LiT that logs every step."""
    config = TrainConfig(
        total_steps=4,
        batch_size=8,
        model=ModelSpec(name="LiT", overrides=SIZE | {"num_classes": num_classes}),
        data=DataConfig(data_dir=str(data_dir)),
        log_every=1,
        checkpoint_every=1,
    )
    return dataclasses.replace(config, **changes)


def overrides(**values: Any) -> list[str]:
    """Flags of `train` for the model of SIZE; names with "__" for "."."""
    size = {f"model__overrides__{name}": value for name, value in SIZE.items()}
    return [f"--config.{k.replace('__', '.')}={v}" for k, v in (size | values).items()]


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """The environment of a program with so many virtual CPU devices, which compiles in half the
    time: without the optimisations of LLVM."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | extra


def start(arguments: list[str], devices: int = 1, **extra: str) -> subprocess.Popen[bytes]:
    """`python -m lit_jax ARGUMENTS` with a small pipe for stdout and no buffer on our side: the
    program cannot run further ahead of its reader than 4096 bytes."""
    return subprocess.Popen(
        [sys.executable, "-m", "lit_jax", *arguments],
        cwd=ROOT,
        env=environment(devices, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
    )


def finish(program: subprocess.Popen[bytes], timeout: float = 300) -> str:
    """Waits for success and returns the rest of stdout. The program must not chat on stderr."""
    output, errors = (text.decode() for text in program.communicate(timeout=timeout))
    assert program.returncode == 0, f"exit status {program.returncode}\n{output}\n{errors}"
    assert errors == "", errors
    return output


def run(arguments: list[str], devices: int = 1) -> str:
    return finish(start(arguments, devices))
