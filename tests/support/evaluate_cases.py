"""The evaluate job on tiny inputs, for all tests of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_jax.commands.evaluate.job import evaluate
from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from lit_jax.evaluation.network import read_network
from lit_jax.evaluation.statistics import read_about
from support.evaluation_cases import pictures, save_inception

# Half of each set has nothing like it in the other: precision and recall are neither 0 nor 1.
SAMPLES, REFERENCE = pictures(32, seed=1), pictures(30, seed=2)
SAMPLES[16:] //= 8
REFERENCE[15:] = REFERENCE[15:] // 8 + 200

Written = tuple[Path, dict[str, Any], str]
"""An evaluation: metrics.json, its content, and the log."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Files that the tests of a module share. `run` evaluates; returns metrics.json and the log."""

    path: Path

    def run(
        self, out: Path, draw: Callable[[Path], Path] | None = None, **changes: Any
    ) -> tuple[dict[str, Any], str]:
        said: list[str] = []
        evaluate(self.config(out, **changes), draw, said.append)
        return json.loads(out.read_text()), "\n".join(said)

    def config(self, out: Path, **changes: Any) -> EvaluateConfig:
        given: dict[str, Any] = {
            "samples": self.path / "samples.npz",
            "inception": self.path / "inception",
        }
        reference: dict[str, Any] = {"source": str(self.path / "reference.npz")}
        for name, value in changes.items():
            if name in {f.name for f in dataclasses.fields(ReferenceConfig)}:
                reference[name] = str(value) if isinstance(value, Path) else value
            else:
                given[name] = value
        given = {n: str(v) if isinstance(v, Path) else v for n, v in given.items()}
        return EvaluateConfig(reference=ReferenceConfig(**reference), out=str(out), **given)

    def written(self) -> Written:
        """One evaluation, with its log."""
        out = self.path / "first" / "metrics.json"
        return out, *self.run(out)

    def kept(self) -> Path:
        """What the first evaluation kept of the reference."""
        start = f"reference-{read_network(self.path / 'inception').sha256[:8]}-tf1-"
        for path in self.path.glob(f"{start}*.statistics.npz"):
            about = read_about(path)
            assert about is not None
            if about["kept"] == len(REFERENCE):
                return path
        raise AssertionError("nothing was kept")


def make_place(path: Path) -> Place:
    save_inception(path / "inception")
    np.savez(path / "samples.npz", arr_0=SAMPLES)
    np.savez(path / "reference.npz", arr_0=REFERENCE)
    return Place(path)


def assert_close(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-4) -> None:
    """Scores of two runs that need not have the same compiled program."""
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], value, rtol=rtol, atol=1e-9, err_msg=name)
