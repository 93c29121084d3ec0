"""Networks with recorded hashes are read once by a job."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_jax.checkpoints.identity import FLOAT_SHA256, IDENTITY
from lit_jax.checkpoints.model_folder import ModelFolder, identity_entries
from lit_jax.checkpoints.stored import StoredArrays
from lit_jax.commands.encode.job import encode
from lit_jax.commands.generate.job import generate
from lit_jax.commands.train.job import train
from lit_jax.config import DistillConfig, InheritConfig
from lit_jax.config.protocol import Protocol
from support import encode_cases, generate_cases, tiny_runs
from support.sampling import sample


def record(path: Path) -> Path:
    """Record the hashes of a network in its folder, as a conversion does."""
    folder = ModelFolder(path)
    content = json.loads((path / "config.json").read_text())
    if folder.family.name == "T5":
        content["provenance"][FLOAT_SHA256] = folder.float_sha256
    else:
        content[IDENTITY] = identity_entries(folder)
    (path / "config.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the reads of arrays per folder."""
    found: Counter[str] = Counter()
    restore = StoredArrays.restore

    def counting(self: Any, target: Any, arguments: Any) -> Any:
        found[self.path.name] += 1
        return restore(self, target, arguments)

    monkeypatch.setattr(StoredArrays, "restore", counting)
    return found


def test_generate(tmp_path: Path, reads: Counter[str]) -> None:
    folders = generate_cases.save_all(tmp_path)
    for path in (folders.model, folders.text_encoder, folders.vae):
        record(path)
    reads.clear()
    generate(generate_cases.config_for(folders, tmp_path / "i.png"), lambda _: None)
    assert reads == {"pixart": 1, "t5": 1, "vae": 1}


def test_sample(tmp_path: Path, reads: Counter[str]) -> None:
    model = record(tiny_runs.save_model(tmp_path / "dit"))
    reads.clear()
    sample(model, tmp_path / "s", 2, Protocol(steps="ddim2", sampler="ddim"))
    assert reads == {"dit": 1}
    sample(model, tmp_path / "s", 2, Protocol(steps="ddim2", sampler="ddim"))
    assert reads == {"dit": 1}  # a finished output needs no parameters


def test_encode(tmp_path: Path, reads: Counter[str]) -> None:
    vae = record(encode_cases.save_vae(tmp_path / "vae"))
    images = encode_cases.save_images(tmp_path / "images", 5)
    reads.clear()
    encode(encode_cases.config_for(vae, images), tmp_path / "out", lambda _: None)
    assert reads == {"vae": 1}


@pytest.mark.parametrize("name", ["teacher", "source"])
def test_train(data_dir: Path, tmp_path: Path, reads: Counter[str], name: str) -> None:
    """A teacher that is the source, too, is read once."""
    teacher = record(tiny_runs.save_model(tmp_path / "teacher"))
    source = record(tiny_runs.save_model(tmp_path / name)) if name == "source" else teacher
    reads.clear()
    config = tiny_runs.run_config(
        data_dir,
        total_steps=2,
        distill=DistillConfig(teacher=str(teacher)),
        inherit=InheritConfig(source=str(source)),
    )
    train(config, tmp_path / "run", lambda _: None)
    assert reads == {"teacher": 1, name: 1}
