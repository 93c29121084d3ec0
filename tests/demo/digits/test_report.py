"""Reports: complete, finite, atomic, and refused otherwise."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from demo.digits import report as reports
from lit_jax.storage import files

NAMES = ["teacher", "lit_distilled", "lit_inherited", "lit_scratch"]


def _row(name: str, **changes) -> reports.ModelRow:
    values = {
        "name": name,
        "frechet_distance": 0.5,
        "accuracy": 0.9375,
        "ddim_frechet_distance": 0.625,
        "ddim_accuracy": 0.875,
        "steps": 1200,
        "params": 1_234_567,
        "attention_macs": 65_536,
        "train_seconds": 75.4,
    }
    return reports.ModelRow(**{**values, **changes})


def _report(**protocol_changes) -> reports.Report:
    ddpm, ddim = ("ddpm", "50", 100), ("ddim", "ddim25", 50)
    samplers = (reports.SamplerRecord(*ddpm), reports.SamplerRecord(*ddim))
    protocol = reports.Protocol(
        feature_space="digit-96",
        reference="digits/train",
        reference_sha256="ab" * 32,
        reference_count=1297,
        count=1000,
        samplers=samplers,
        guidance_scale=1.5,
        guidance_channels="all",
        guidance_interval=None,
        vae=None,
        dtype="float32",
        seed=0,
        weights_sha256={name: "cd" * 32 for name in NAMES},
    )
    return reports.Report(
        title="Demo",
        rows=[_row(name) for name in NAMES],
        protocol=dataclasses.replace(protocol, **protocol_changes),
        context=reports.Context(0.0858, 500, 0.986, "SVM on 500 images"),
        pictures={"Samples": "samples.png"},
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "samples.png").write_bytes(b"png")
    return tmp_path


def test_report_json_holds_rows_protocol_and_context(folder):
    report = _report(guidance_interval=(100.0, 900.0))
    reports.write_report(folder, report)
    content = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in content["rows"]] == NAMES
    required = {
        "name",
        "frechet_distance",
        "accuracy",
        "steps",
        "params",
        "attention_macs",
        "train_seconds",
        "ddim_frechet_distance",
        "ddim_accuracy",
    }
    assert all(required == set(row) for row in content["rows"])
    assert content["rows"][0]["accuracy"] == 0.9375 and content["rows"][0]["steps"] == 1200
    protocol = content["protocol"]
    assert protocol["samplers"][1] == {"name": "ddim", "steps": "ddim25", "nfe": 50}
    assert protocol["vae"] is None and protocol["guidance_interval"] == [100.0, 900.0]
    assert protocol["weights_sha256"]["teacher"] == "cd" * 32
    assert content["context"]["real_frechet_distance"] == 0.0858
    assert sorted(p.name for p in folder.iterdir()) == ["report.json", "report.md", "samples.png"]


def test_report_md_is_readable(folder):
    reports.write_report(folder, _report())
    text = (folder / "report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(NAMES) and len({line.count("|") for line in table}) == 1
    cells = ["`teacher`", "0.500", "93.8%", "0.625", "87.5%", "1,200", "1,234,567", "65,536"]
    assert f"| {' | '.join(cells)} | 1 min 15 s |" in table
    assert "![Samples](samples.png)" in text and "*not* FID" in text
    for stated in ("digit-96", "ab" * 32, "cd" * 32, "scale 1.5", "ddim25", "float32", "98.6%"):
        assert stated in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frechet_distance": float("nan")}, "'teacher': frechet_distance is nan"),
        ({"ddim_frechet_distance": -1.0}, "ddim_frechet_distance is -1.0"),
        ({"accuracy": 93.0}, r"accuracy is 93.0; it must be a fraction"),
        ({"ddim_accuracy": None}, "ddim_accuracy is None"),
        ({"steps": 1.5}, "steps is 1.5; it must be an integer"),
        ({"params": True}, "params is True"),
        ({"train_seconds": float("inf")}, "train_seconds is inf"),
        ({"attention_macs": np.float32(3)}, "attention_macs is"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_written(folder, changes, message):
    report = _report()
    report = dataclasses.replace(report, rows=[_row("teacher", **changes), *report.rows[1:]])
    with pytest.raises(ValueError, match=message):
        reports.write_report(folder, report)
    assert [p.name for p in folder.iterdir()] == ["samples.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": {"teacher": "cd" * 32}}, r"weights_sha256 is of \['teacher'\]"),
        ({"reference_sha256": "unknown"}, "sha256 of reference is 'unknown'"),
        ({"guidance_channels": "two"}, "guidance_channels 'two'"),
        ({"guidance_interval": (9.0, 1.0)}, "is no range"),
        ({"dtype": ""}, "dtype is ''"),
        ({"samplers": (reports.SamplerRecord("ddpm", "50", -1),) * 2}, r"samplers\[0\]: nfe is -1"),
        ({"samplers": (reports.SamplerRecord("ddpm", "50", 1),)}, "1 samplers"),
    ],
)
def test_incomplete_protocols_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        reports.write_report(folder, _report(**changes))


def test_missing_pictures_and_doubled_rows_are_listed_together(tmp_path):
    report = _report()
    report = dataclasses.replace(report, rows=[*report.rows, report.rows[0]])
    with pytest.raises(ValueError, match="must be unique.*'samples.png' is not in"):
        reports.write_report(tmp_path, report)
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_array_hash_sees_values_dtype_and_shape():
    array = np.arange(6, dtype=np.uint8)
    variants = [array, array[::-1], array.reshape(2, 3), array.view(np.int8)]
    hashes = {files.sha256_array(v) for v in variants}
    assert len(hashes) == 4 and files.sha256_array(array.copy()) in hashes
