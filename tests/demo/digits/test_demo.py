"""The demo as a visitor runs it, shortened, and the study over seeds on made-up reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.digits import seed_study

ROOT = Path(__file__).resolve().parents[3]
MODELS = ["teacher", "lit_distilled", "lit_inherited", "lit_scratch"]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    # One device, and code that compiles fast: this test is about the walk, not the numbers.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "demo.digits", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    done = run_demo("--out", str(out), "--steps", "25", "--count", "60")
    assert done.returncode == 0, done.stderr
    assert "whole demo:" in done.stdout
    return out


def test_report_has_the_promised_rows(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == MODELS
    fields = {"frechet_distance", "accuracy", "steps", "params", "attention_macs", "train_seconds"}
    for row in report["rows"]:
        assert fields <= set(row)
        assert row["frechet_distance"] > 0 and 0 <= row["accuracy"] <= 1
        assert row["steps"] == (8000 if row["name"] == "teacher" else 25)
    by_name = {row["name"]: row for row in report["rows"]}
    # The shipped teacher is trained; 25 steps from scratch are not.
    assert by_name["teacher"]["accuracy"] > 0.9
    assert by_name["teacher"]["frechet_distance"] < by_name["lit_scratch"]["frechet_distance"]
    assert all(name in (demo / "report.md").read_text() for name in MODELS)


def test_pictures_are_drawn(demo: Path) -> None:
    for name in ("samples.png", "losses.png"):
        with Image.open(demo / name) as image:
            assert image.width > 600
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_what_is_done_is_not_done_again(demo: Path) -> None:
    before = (demo / "report.json").read_bytes()
    again = run_demo("--out", str(demo), "--steps", "25", "--count", "60")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is there already") == 1 + 2 * len(MODELS)
    assert again.stdout.count("nothing to do") == 3
    assert (demo / "report.json").read_bytes() == before


def test_another_seed_in_the_same_folder_is_refused(demo: Path) -> None:
    other = run_demo("--out", str(demo), "--steps", "25", "--count", "60", "--seed", "1")
    assert other.returncode == 1
    assert other.stderr.startswith("error: checkpoint 25 cannot be continued")
    assert "Traceback" not in other.stderr


def test_study_takes_differences_within_a_seed(tmp_path: Path) -> None:
    def report(shift: float) -> dict[str, Any]:
        scores = dict(zip(MODELS, (0.1, 0.3, 0.4, 0.9), strict=True))
        rows = [
            {"name": n, "steps": 5} | {score: v + shift for score in seed_study.SCORES}
            for n, v in scores.items()
        ]
        return {"rows": rows, "protocol": {"count": 60}}

    found = seed_study.summarise([0, 1, 2], [report(0.0), report(0.2), report(0.4)])
    distilled = found["models"]["lit_distilled"]["frechet_distance"]
    assert distilled["mean"] == pytest.approx(0.5)
    assert distilled["standard_deviation"] == pytest.approx(0.2)
    gap = found["differences"]["lit_inherited - lit_distilled"]["frechet_distance"]
    assert gap["mean"] == pytest.approx(0.1)
    assert gap["standard_deviation"] == pytest.approx(0.0, abs=1e-12)
    assert "| lit_distilled | 0.500 ± 0.200 |" in seed_study.to_markdown(found)
    seed_study.plot(tmp_path / "study.png", found)
    assert (tmp_path / "study.png").stat().st_size > 1000
