from __future__ import annotations

import pytest

from lit_jax.data import digits


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, prepared once for this folder of tests."""
    path = str(tmp_path_factory.mktemp("data"))
    digits.prepare(path)
    return path
