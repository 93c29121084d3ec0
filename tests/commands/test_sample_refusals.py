"""What the sampling job refuses before it writes anything."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_jax.config.protocol import Protocol
from support import tiny_runs
from support.sampling import sample

pytestmark = pytest.mark.usefixtures("compiled_once")
GUIDED = Protocol(steps="6", cfg_scale=2.0, cfg_channels="all", seed=3)
COUNT = 11


@pytest.fixture(scope="module")
def written(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output in shards of 4, 4 and 3 images."""
    return sample(teacher, tmp_path_factory.mktemp("out") / "s", COUNT, GUIDED, shard_size=4)


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("odd")
    return {
        "unconditional": tiny_runs.save_model(path / "unconditional", num_classes=0),
        "no null": tiny_runs.save_model(path / "no_null", class_dropout_prob=0.0),
        "other": tiny_runs.save_model(path / "other", depth=1),
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"model": "nowhere"}, "nowhere is not a model folder or training workdir"),
    "labels": ({"labels": (3, 10, -1)}, r"labels \[10, -1\] are not in 0..9"),
    "sampler": ({"sampler": "dmpd"}, "unknown sampler 'dmpd'.*ddim, ddpm"),
    "channels": ({"cfg_channels": "two"}, "unknown guidance channels 'two'.*all, three"),
    "seed": ({"seed": 2**32}, "seed 4294967296 is not in 0..4294967295"),
    "steps": ({"steps": "5000"}, "5000"),
    "solver": (
        {"sampler": "dpm_solver", "steps": "ddim50"},
        "steps 'ddim50' pick timesteps, but a DPM solver .*: give the number of steps, '50'",
    ),
    "interval": ({"cfg_scale": 2.0, "cfg_interval": (500.0, 100.0)}, r"interval .* is empty"),
    "count": ({"num_samples": 0}, "num_samples is 0; it must be an integer of at least 1"),
    "batch": ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
    "shard": ({"shard_size": 0}, "shard_size is 0; it must be an integer of at least 1"),
    "decode": (
        {"decode_batch_size": 0},
        "decode_batch_size is 0; it must be an integer of at least",
    ),
    "dtype": ({"dtype": "float16"}, "unknown dtype 'float16'.*bfloat16, float32"),
    "policy": ({"label_policy": "fair"}, "unknown label policy 'fair'.*balanced, uniform"),
    "both": ({"label_policy": "uniform", "labels": (1,)}, "contradicts; give one of the two"),
    "no classes": (
        {"model": "unconditional", "label_policy": "uniform"},
        "--label_policy uniform is given, but the model is unconditional",
    ),
    "vae": ({"vae": "v"}, r"--vae v is given, but .* is a model of pixels \(1 channels\)"),
    "latents": ({"save_latents": True}, "--save_latents is given, but .* is a model of pixels"),
    "unconditional": ({"model": "unconditional", "labels": (1,)}, "model is unconditional"),
    "no null": ({"model": "no null", "cfg_scale": 2.0}, "guidance 2.0 needs a null class"),
    "request": (
        {"out": "written", "num_samples": 12, "steps": "7", "shard_size": 4},
        "belongs to another request: count is 11, asked for is 12;.*"
        "protocol.steps is 6, asked for is 7; choose another --out",
    ),
    "other labels": (
        {"out": "written", "num_samples": 11, "labels": (3, 1), "shard_size": 4},
        r"labels is nothing, asked for is \[3, 1\]",
    ),
    "other weights": (
        {"out": "written", "num_samples": 11, "model": "other", "shard_size": 4},
        "architecture.depth is 2, asked for is 1; .*weights_sha256 is ",
    ),
}


def attempt(model: Path, out: Path, changes: dict[str, Any]) -> None:
    """Calls the job with some settings and fields of the protocol changed."""
    fields = {f.name for f in dataclasses.fields(Protocol)}
    given: dict[str, Any] = {"model": model, "out": out, "num_samples": 2} | changes
    protocol = {k: given.pop(k) for k in fields & given.keys()}
    sample(**given, protocol=Protocol(**protocol))


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(
    teacher: Path, written: Path, odd_models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    changes, named = REFUSED[case]
    changes = dict(changes)
    if changes.get("model") in odd_models:
        changes["model"] = odd_models[changes["model"]]
    if changes.get("out") == "written":
        changes["out"] = written
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    with pytest.raises(ValueError, match=named):
        attempt(teacher, tmp_path / "s", changes)
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in written.iterdir()} == before


def test_samples_of_unknown_origin_are_kept(teacher: Path, written: Path, tmp_path: Path) -> None:
    for name in ("samples.npz", "grid.png"):
        out = tmp_path / name.replace(".", "_")
        out.mkdir()
        shutil.copy(written / name, out)
        with pytest.raises(
            ValueError, match=f"holds {name} and no request.json; choose another --out"
        ):
            attempt(teacher, out, {})
        assert [path.name for path in out.iterdir()] == [name]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="is a file; --out is a folder"):
        attempt(teacher, file, {})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "request.json").write_text("{")
    with pytest.raises(ValueError, match="request.json is damaged"):
        attempt(teacher, broken, {})


def test_room_for_shards_and_result_is_needed(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 images of 64 bytes, twice."""
    asked: list[Path] = []

    def usage(free: int) -> Any:
        return lambda path: asked.append(path) or shutil._ntuple_diskusage(10**9, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr("shutil.disk_usage", usage(127_999))
    with pytest.raises(ValueError, match=r"needs 0.000128 GB for 1000 images .* make room"):
        attempt(teacher, tmp_path / "a/s", {"num_samples": 1000, "steps": "2"})
    assert asked == [tmp_path / "a/s"] and list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", usage(128_000))
    attempt(teacher, tmp_path / "a/s", {"num_samples": 1000, "steps": "2", "batch_size": 500})
