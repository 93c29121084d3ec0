"""A DiG from a trained softmax DiT: what fits, and what has to stay its own."""

from __future__ import annotations

import numpy as np
import pytest

from lit_jax.inheritance import inherit
from lit_jax.models import registry
from support import tiny_runs

TEACHER = registry.model_config("DiT", **tiny_runs.SIZE)
STUDENT = registry.model_config("DiG", **tiny_runs.SIZE)


def test_everything_outside_the_blocks_parts_is_inherited() -> None:
    teacher, student = (tiny_runs.random_params(c, i) for i, c in enumerate((TEACHER, STUDENT)))
    pair = (STUDENT, student, TEACHER, teacher, "all_but_attention")
    with pytest.raises(ValueError, match=r"blocks/mlp/gate/kernel: student \S.*teacher has none"):
        inherit(*pair)
    params, report = inherit(*pair, reinitialise=("blocks/(mlp|dwc)/",))
    for path in ("blocks/adaln/kernel", "x_embedder/kernel", "y_embedder/embedding"):
        assert path in report.inherited
    np.testing.assert_array_equal(
        params["blocks"]["adaln"]["kernel"], teacher["blocks"]["adaln"]["kernel"]
    )
    for part in ("attn", "mlp", "dwc"):
        assert f"blocks/{part}" in {"/".join(path.split("/")[:2]) for path in report.new}
    np.testing.assert_array_equal(
        params["blocks"]["attn"]["q"]["kernel"], student["blocks"]["attn"]["q"]["kernel"]
    )
