from __future__ import annotations

import pytest

from demo.digits import dataset as digits


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, prepared once for this folder of tests."""
    path = str(tmp_path_factory.mktemp("data"))
    digits.prepare(path)
    return path
