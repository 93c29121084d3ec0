"""The evaluate job refuses what cannot work before anything is compiled or written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from lit_jax.evaluation.network import read_network
from lit_jax.evaluation.reference import cache_file, open_reference
from support.evaluate_cases import SAMPLES, Place, make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("evaluate"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "samples": ({"samples": "nowhere.npz"}, "--samples nowhere.npz does not exist"),
    "reference": ({"source": "nowhere"}, "--reference nowhere does not exist"),
    "inception": ({"inception": "nowhere"}, "nowhere is not a model folder"),
    "no inception": (
        {"inception": "{teacher}"},
        "--inception .* holds a DiT; the FID Inception is needed",
    ),
    "splits": ({"is_splits": 33}, "32 images, which leaves some of 33 splits .*--is_splits 32"),
    "dimension": ({"source": "{wide}"}, r"another network: mu \(64,\).* has 128 features"),
    "half": ({"source": "{half}"}, "mu and sigma belong together"),
    "nan": ({"source": "{nan}"}, "mu or sigma of .* contains NaN"),
    "nothing": ({"source": "{other}"}, "holds x; a reference needs arr_0"),
    "crop of npz": ({"resolution": 24}, "--resolution 24 crops photographs"),
    "dark": ({"samples": "{dark}"}, "grey levels 0 and 1 only"),
    "floats": ({"samples": "{floats}"}, "is float32, not uint8"),
    "data set": (
        {"source": "tfds:nothing:train", "data_dir": "nowhere", "resolution": 8},
        "nowhere/nothing is missing",
    ),
    "one image": ({"source": "{one}"}, "holds 1 image; a reference needs 2"),
    "crop of samples": ({"source": "{drawn}", "resolution": 24}, "--resolution 24 crops photogr"),
    "out": ({"out": "{folder}"}, "is a folder; --out is a file"),
}


@pytest.fixture(scope="module")
def bad_files(place: Place, teacher: Path) -> dict[str, Path]:
    path = place.path / "bad"
    path.mkdir()
    square = np.eye(64)
    np.savez(path / "wide.npz", mu=np.zeros(64), sigma=square)
    np.savez(path / "half.npz", mu=np.zeros(128))
    np.savez(path / "nan.npz", mu=np.full(128, np.nan), sigma=np.eye(128))
    np.savez(path / "other.npz", x=square)
    np.savez(path / "dark.npz", arr_0=SAMPLES // 255)
    np.savez(path / "floats.npz", arr_0=SAMPLES.astype(np.float32))
    np.savez(path / "one.npz", arr_0=SAMPLES[:1])
    (path / "drawn").mkdir()
    np.savez(path / "drawn" / "samples.npz", arr_0=SAMPLES)
    (path / "drawn" / "sample.json").write_text("{}")
    files = {name: path / f"{name}.npz" for name in ("wide", "half", "nan", "other", "dark")}
    files |= {"one": path / "one.npz", "drawn": path / "drawn"}
    return files | {"floats": path / "floats.npz", "teacher": teacher, "folder": path}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(place: Place, bad_files: dict[str, Path], tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    changes = {
        name: value.format(**bad_files) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    out = Path(changes.pop("out", tmp_path / "o" / "metrics.json"))
    with pytest.raises(ValueError, match=message):
        place.run(out, **changes)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_kept(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written.*--cache_dir"):
        place.run(tmp_path / "m.json", cache_dir=tmp_path / "file")
    network = read_network(place.path / "inception")
    reference = open_reference(
        place.config(tmp_path / "m.json", cache_dir=tmp_path).reference, network
    )
    np.savez(cache_file(reference, reference.fingerprint()), thesis=np.arange(3))
    with pytest.raises(ValueError, match="is no file of lit_jax; move it"):
        place.run(tmp_path / "m.json", cache_dir=tmp_path)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"samples": "a", "model": "b"}, "exactly one of the two"),
    "neither": ({"samples": ""}, "exactly one of the two"),
    "no inception": ({"inception": ""}, "--inception is missing"),
    "out in use": ({"out": "a.samples"}, "--out a.samples: names that end in .work or .samples"),
    "no out": ({"out": ""}, "--out is missing"),
    "no reference": ({"source": ""}, "--reference is missing"),
    "splits": ({"is_splits": 0}, "is_splits is 0; it must be at least 1"),
    "few": ({"images": 3}, "--reference_images is 3; .* at least 4"),
    "tfds": ({"source": "tfds:imagenet2012"}, "not of the form tfds:NAME:SPLIT"),
    "tfds place": ({"source": "tfds:a:b", "resolution": 8}, "needs --reference_data_dir"),
    "place": ({"data_dir": "x"}, "--reference_data_dir x belongs to --reference tfds:"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_refused_configurations(case: str) -> None:
    changes, message = CONFIGS[case]
    given = {"samples": "s", "inception": "i", "out": "o", "source": "r"} | changes
    names = {f.name for f in dataclasses.fields(ReferenceConfig)}
    with pytest.raises(ValueError, match=message):
        reference = ReferenceConfig(**{n: v for n, v in given.items() if n in names})
        rest = {n: v for n, v in given.items() if n not in names}
        EvaluateConfig(reference=reference, **rest)
