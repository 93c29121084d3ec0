from __future__ import annotations

from pathlib import Path

import jax
import pytest

from demo.digits import dataset as digits
from lit_jax import sharding
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.sample import job as sample
from lit_jax.config import MeshConfig
from lit_jax.sampling.sampler import make_sampler
from support import autoencoder_cases, tiny_runs


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared once for the jobs."""
    path = tmp_path_factory.mktemp("data")
    digits.prepare(path)
    return path


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny softmax DiT."""
    return tiny_runs.save_model(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny DiT on latents of 8 x 8 x 4."""
    path = tmp_path_factory.mktemp("latent") / "model"
    return tiny_runs.save_model(path, in_channels=4, patch_size=8, depth=1)


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny VAE: latents of 4 channels, twice the pixels along an axis."""
    path, model = tmp_path_factory.mktemp("vae") / "tiny-vae", autoencoder_cases.tiny()
    save_model_dir(path, model.config, autoencoder_cases.params_of(model), {"source": "random"})
    return path


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a progress line, equal requests to sample share one compiled program."""
    monkeypatch.setattr(
        sample,
        "make_sampler",
        lambda *given, progress, **named: make_sampler(*given, **named),
    )


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in this process use one of its devices: quicker to compile."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda config: mesh)
