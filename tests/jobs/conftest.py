from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs

from lit_jax.data import digits


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
