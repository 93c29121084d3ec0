"""The miniature of the paper's tables: a shortened run as a visitor would start it, the models it
starts from, and the verdicts on made-up results."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from configs import digits_roadmap
from lit_jax.checkpoints.identity import params_sha256
from lit_jax.checkpoints.writing import save_model_dir, write_config
from lit_jax.models import registry
from support import tiny_runs
from support.models import load_model_dir

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("relu", "lambda.5_.05", "clear3_untrained")


def roadmap(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "demo.roadmap", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def flags(out: Path, steps: int = 4) -> list[str]:
    rows = f"--rows={','.join(ROWS)}"
    return [f"--out={out}", rows, "--seeds=0", f"--steps={steps}", "--count=100", "--workers=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("roadmap") / "out"
    done = roadmap(*flags(out))
    assert done.returncode == 0, done.stderr
    assert "[3/3]" in done.stdout and "ETA" in done.stdout
    return out


@pytest.mark.slow
def test_every_run_leaves_its_result(finished: Path) -> None:
    for row in ROWS:
        result = json.loads((finished / "results" / f"{row}_seed0.json").read_text())
        assert result["frechet_distance"] > 0 and 0 <= result["accuracy"] <= 1
        steps = 0 if row == "clear3_untrained" else 4
        assert result["request"]["train"]["total_steps"] == steps
        assert (finished / "samples" / f"{row}_seed0" / "samples.npz").exists()
    # The inherited one starts from a trained model.
    assert accuracy(finished, "lambda.5_.05") > accuracy(finished, "relu")
    # The teacher with its attention cut to circles, which has not learned anything since.
    assert accuracy(finished, "clear3_untrained") > 0.5
    assert not list((finished / "work").iterdir())
    report = json.loads((finished / "report.json").read_text())
    assert list(report["rows"]) == [*ROWS[:2], "clear3_untrained", "lit"]
    assert "| ReLU linear |" in (finished / "report.md").read_text()
    with Image.open(finished / "roadmap.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def accuracy(out: Path, row: str) -> float:
    return json.loads((out / "results" / f"{row}_seed0.json").read_text())["accuracy"]


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_what_is_missing_is(finished: Path) -> None:
    missing = finished / "results" / "relu_seed0.json"
    kept = finished / "results" / "lambda.5_.05_seed0.json"
    before, first = kept.stat().st_mtime_ns, json.loads(missing.read_text())
    missing.unlink()
    again = roadmap(*flags(finished))
    assert again.returncode == 0, again.stderr
    assert "3 runs, 2 are there already" in again.stdout
    assert kept.stat().st_mtime_ns == before
    # The same numbers, whenever and in whatever order it runs.
    second = json.loads(missing.read_text())
    for key in ("accuracy", "weights_sha256", "request"):
        assert second[key] == first[key]
    assert second["frechet_distance"] == pytest.approx(first["frechet_distance"], rel=1e-9)


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed_in(finished: Path) -> None:
    other = roadmap(*flags(finished, steps=5))
    assert other.returncode == 1
    assert other.stderr.startswith("error: ") and "Traceback" not in other.stderr
    assert "train.total_steps 4, now 5" in other.stderr


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--rows=relu,rely", "unknown rely (known: softmax, relu,"),
        ("--seeds=0,x", "--seeds '0,x' is not a comma-separated list"),
        ("--workers=0", "--workers 0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: None, argument: str, message: str
) -> None:
    module = importlib.import_module("demo.roadmap.__main__")
    monkeypatch.setattr(sys, "argv", ["roadmap.py", f"--out={tmp_path / 'out'}", argument])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert str(stop.value.code).startswith("error: ") and message in str(stop.value.code)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))


def test_sources_are_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: None
) -> None:
    runs = importlib.import_module("demo.roadmap.runs")
    monkeypatch.setattr(digits_roadmap, "SOURCE_STEPS", (2, 4))
    monkeypatch.setattr(digits_roadmap, "NOT_EMA", "source2_model")
    model = registry.model_config("DiT", **tiny_runs.SIZE)
    stored = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for step in (2, 4):
            for seed, entry in enumerate(("params", "ema"), start=step):
                stored[step, entry] = tiny_runs.random_params(model, seed)
            state = {entry: stored[step, entry] for entry in ("params", "ema")}
            path = tmp_path / "run" / "checkpoints" / str(step) / "state"
            checkpointer.save(path, state | {"step": np.array(step), "opt_state": {}})
    write_config(tmp_path / "run", model, {})
    runs.save_sources(tmp_path / "run", tmp_path / "models")
    runs.save_sources(tmp_path / "run", tmp_path / "models")  # after an interruption
    found = {p.name: load_model_dir(p)[1] for p in (tmp_path / "models").iterdir()}
    expected = {
        "source2": stored[2, "ema"],
        "source4": stored[4, "ema"],
        "source2_model": stored[2, "params"],
    }
    assert set(found) == set(expected)
    for name, params in expected.items():
        assert params_sha256(found[name]) == params_sha256(params)


def result(row: str, seed: int, distance: float) -> dict[str, Any]:
    request = {"train": {"total_steps": 5, "batch_size": 16}, "count": 60}
    request["protocol"] = {"sampler": "ddim", "steps": "ddim10", "cfg_scale": 1.0}
    scores = {"frechet_distance": distance, "accuracy": 0.5, "train_seconds": 1.0}
    return {"row": row, "seed": seed, "request": request, "weights_sha256": "0", **scores}


def verdicts(demo_report: Any, distances: dict[str, list[float]]) -> dict[tuple[str, str], str]:
    results = [
        result(row, seed, value) for row, v in distances.items() for seed, value in enumerate(v)
    ]
    reference = {"frechet_distance": 0.1, "accuracy": 0.9, "sha256": "0"}
    report = demo_report.summarise(results, reference)
    demo_report.to_markdown(report)
    return {(v["better"], v["worse"]): v["verdict"] for v in report["verdicts"]}


def test_a_verdict_needs_more_than_the_spread(demo: None) -> None:
    module = importlib.import_module("demo.roadmap.report")
    found = verdicts(
        module,
        {
            "relu_dwc": [1.0, 1.1, 1.2],
            "relu": [2.0, 2.1, 2.3],  # always worse, by much more than the spread
            "softmax": [1.1, 1.0, 1.25],  # sometimes
            "focused_relu": [0.5, 0.6, 0.75],  # always better
            "focused_gelu": [0.51, 0.61, 0.77],  # always worse, by less than the spread
            "heads1": [1.0, 1.1, 1.2],  # relu_dwc to the digit; stands for heads4 too
            "heads16": [0.4, 0.5, 0.6],
        },
    )
    assert found["relu_dwc", "relu"] == "shown"
    assert found["relu_dwc", "softmax"] == "no difference beyond the spread"
    assert found["relu_dwc", "focused_relu"] == "opposite"
    assert found["focused_relu", "focused_gelu"] == "not shown"
    assert found["heads1", "heads4"] == "no difference beyond the spread"
    assert found["heads4", "heads16"] == "opposite"
    assert ("heads4", "heads8") not in found


def test_one_seed_shows_nothing(demo: None) -> None:
    module = importlib.import_module("demo.roadmap.report")
    assert verdicts(module, {"relu_dwc": [1.0], "relu": [9.0]}) == {
        ("relu_dwc", "relu"): "one seed"
    }


def report_of(demo_report: Any, distances: dict[str, list[float]]) -> dict[str, Any]:
    results = [
        result(row, seed, value) for row, v in distances.items() for seed, value in enumerate(v)
    ]
    reference = {"frechet_distance": 0.1, "accuracy": 0.9, "sha256": "0"}
    return demo_report.summarise(results, reference)


def test_rows_that_were_not_run_again_stay(demo: None) -> None:
    """With a heading that is today's, and in verdicts together with the new ones."""
    module, merge = (
        importlib.import_module(name) for name in ("demo.roadmap.report", "demo.roadmap.merge")
    )
    earlier = report_of(module, {"relu": [2.0, 2.2], "lambda.5_.05": [0.5, 0.6]})
    earlier["rows"]["relu"]["label"] = "another"
    report = report_of(module, {"relu_dwc": [1.0, 1.1], "clear3": [0.3, 0.5]})
    assert merge.kept(earlier, report) == ["relu", "lambda.5_.05", "lit"]
    both = merge.merged(earlier, report)
    rows = {name: row["frechet_distance"]["mean"] for name, row in both["rows"].items()}
    expected = {"relu": 2.1, "relu_dwc": 1.05, "heads4": 1.05, "lambda.5_.05": 0.55}
    assert rows == pytest.approx(expected | {"clear3": 0.4, "lit": 0.55})
    assert both["rows"]["relu"]["label"] == "ReLU linear"
    assert {(v["better"], v["worse"]) for v in both["verdicts"]} == {
        ("relu_dwc", "relu"),
        ("clear3", "lit"),
    }
    assert merge.merged(both, report_of(module, {"relu": [9.0, 9.0]}))["rows"]["relu"][
        "frechet_distance"
    ]["values"] == {"0": 9.0, "1": 9.0}


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("count", 61, "count 60, now 61"),
        ("batch_size", 8, "batch_size 16, now 8"),
        ("reference", {"sha256": "1"}, "sha256 of the reference '0', now '1'"),
    ],
)
def test_rows_of_another_measure_are_not_mixed_in(
    demo: None, key: str, value: Any, message: str
) -> None:
    module, merge = (
        importlib.import_module(name) for name in ("demo.roadmap.report", "demo.roadmap.merge")
    )
    earlier = report_of(module, {"relu": [2.0]})
    report = report_of(module, {"relu_dwc": [1.0]}) | {key: value}
    with pytest.raises(ValueError, match=message):
        merge.merged(earlier, report)


def test_a_row_without_a_published_number(demo: None, tmp_path: Path) -> None:
    module = importlib.import_module("demo.roadmap.report")
    report = report_of(module, {"relu": [2.0, 2.2], "sana": [1.9, 2.0], "clear3": [0.3, 0.5]})
    text = module.to_markdown(report)
    assert "| SANA | 1.950 ± 0.071 | 50.0 ± 0.0 % |  |  |" in text
    assert "| row | FDD | accuracy | steps |" in text  # a table without any
    (verdict,) = report["verdicts"]
    assert verdict["better"] == "sana" and verdict["fid_difference"] is None
    module.plot(tmp_path / "plot.png", report)
    with Image.open(tmp_path / "plot.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_an_untrained_row_is_the_source_with_another_attention(demo: None, tmp_path: Path) -> None:
    runs = importlib.import_module("demo.roadmap.runs")
    run = runs.Run("clear2_untrained", 0, None, 60, str(tmp_path))
    config = runs.config_of(run)
    source = registry.model_config("DiT", **config.model.overrides | {"window_size": 8})
    params = tiny_runs.random_params(source, 0)
    save_model_dir(config.inherit.source, source, params, {"source": "test"})
    runs.save_untrained(config, tmp_path / "work")
    found, stored = load_model_dir(tmp_path / "work")
    assert (found.family, found.mixer, found.window_size) == ("CLEAR", "window", 2)
    assert params_sha256(stored) == params_sha256(params)
    assert runs.request_of(run)["train"]["total_steps"] == 0


def test_the_page_holds_the_numbers_of_its_json(demo: None) -> None:
    module = importlib.import_module("demo.roadmap.report")
    report = json.loads((ROOT / "docs" / "roadmap.json").read_text())
    page = (ROOT / "docs" / "roadmap.md").read_text()
    assert page == module.into_page(page, report), "run: python -m demo.roadmap.report RUN docs"
    seeds = {tuple(row["frechet_distance"]["values"]) for row in report["rows"].values()}
    assert seeds == {("0", "1", "2")}
    assert list(report["rows"]) == [name for name in digits_roadmap.ROWS if name in report["rows"]]
    for name, row in digits_roadmap.ROWS.items():
        assert name in report["rows"] or re.search(rf"Not run: .*{re.escape(row.label)}", page)
