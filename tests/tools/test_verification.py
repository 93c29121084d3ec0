"""--verify: what it accepts and what it notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lit_jax.checkpoints.convert import Import
from support import checkpoint_files as files
from support.golden_cases import COPIES, load_state_dict
from tools.convert_torch_ckpt import main

pytest.importorskip("torch")

LIT = str(COPIES / "lit_dit_p2.safetensors")
CASES = {
    "dit_p8_nosigma_nodrop": ["--set", "num_heads=6", "class_dropout_prob=0"],
    "lit_dit_p2": [],
    "pixart_ms": ["--set", "num_heads=3"],
}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_files(case: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their position table is rounded; both sides compute the exact one."""
    state = load_state_dict(COPIES, case)
    assert "pos_embed" in state
    source = files.half_precision(Path("half.safetensors"), state, dtype)
    assert main(["--src", str(source), "--dst", "m", *CASES[case], "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "verify noise: max |difference|" in printed and f"stored as {dtype}" in printed


@pytest.mark.parametrize("error", [0.0, 0.3])
def test_the_limit_of_bfloat16(
    error: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding passes; a kernel that is off does not, although the limit is wide."""
    original = Import.pieces

    def pieces(self: Import, path: str) -> Iterator[tuple[int | None, np.ndarray]]:
        for index, array in original(self, path):
            wrong = path == "final_layer/linear/kernel"
            yield index, array * np.float32(1 + error) if wrong else array

    monkeypatch.setattr(Import, "pieces", pieces)
    code = main(["--src", LIT, "--dst", "m", "--dtype", "bfloat16", "--verify"])
    captured = capsys.readouterr()
    if error:
        assert code == 1 and "flax and torch outputs differ: noise by" in captured.err
        assert not Path("m").exists()
    else:
        assert code == 0 and "written as bfloat16" in captured.out
