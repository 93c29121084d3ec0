"""The evaluate job: scores against a second implementation, resuming, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.commands.evaluate.job import evaluate
from lit_jax.evaluation import measuring
from lit_jax.evaluation.network import FeatureExtractor, read_network
from lit_jax.evaluation.npz_images import NpzImages
from support import evaluation_cases, tiny_runs
from support.evaluate_cases import SAMPLES, Place, Written, assert_close, make_place
from support.evaluation_cases import pictures
from support.train_runs import run_on_two_processes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def written(place: Place) -> Written:
    return place.written()


def _features(place: Place, name: str) -> list[np.ndarray]:
    images = NpzImages(place.path / name)
    extractor = FeatureExtractor(read_network(place.path / "inception"), 16)
    batches = [found for _, found in extractor.features(images, 0, images.count)]
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def test_scores_equal_a_second_implementation(place: Place, written: Written) -> None:
    metrics = written[1]["metrics"]
    pool, logits, spatial = _features(place, "samples.npz")
    pool_r, _, spatial_r = _features(place, "reference.npz")
    precision, recall = evaluation_cases.precision_recall(pool_r, pool)
    mean, std = evaluation_cases.inception_score(logits, [32 * i // 10 for i in range(11)])
    expected = {
        "fid": evaluation_cases.frechet(pool, pool_r),
        "sfid": evaluation_cases.frechet_from_rows(spatial, spatial_r),
        "inception_score": mean,
        "inception_score_std": std,
        "precision": precision,
        "recall": recall,
        "kid": evaluation_cases.kid(pool, pool_r),
        "kid_subset_mean": None,
        "kid_subset_std": None,
    }
    assert metrics.keys() == expected.keys()
    assert_close(metrics, expected, rtol=1e-6)
    assert 0 < precision < 1 and 0 < recall < 1 and metrics["fid"] > 0


def test_record_says_what_was_measured(place: Place, written: Written) -> None:
    out, record, said = written
    assert record["evaluator"] == "ADM definitions, lit_jax"
    samples, reference = record["samples"], record["reference"]
    assert (samples["count"], samples["size"], samples["made_by"]) == (32, [24, 24], None)
    for name in ("weights_sha256", "sampler", "steps", "guidance_scale", "vae", "dtype", "seed"):
        assert samples[name] is None
    assert (reference["count"], reference["pairwise_count"]) == (30, 30)
    for digest in (samples["fingerprint"], samples["images_sha256"], reference["images_sha256"]):
        assert len(digest) == 64
    network = read_network(place.path / "inception")
    assert record["inception"]["sha256"] == network.sha256 == reference["inception_sha256"]
    assert record["inception"]["preprocessing"] == "tf1"
    assert record["definitions"]["inception_score_splits"] == 10
    assert record["versions"].keys() >= {"lit_jax", "jax", "numpy", "pillow"}
    warnings = "\n".join(record["warnings"])
    for part in (
        "32 samples: FID and sFID of few images are too large",
        "rank of at most 31, of 128",
        "30 reference images",
        "does not say how the samples were made",
        "1/16 of the width",
        "use 30 reference images; the ADM suite uses 10,000",
    ):
        assert part in warnings, part
    assert record["absent"].keys() == {"kid_subset_mean", "kid_subset_std"}
    for line in (f"  FID {record['metrics']['fid']:28.6g}", f"wrote {out}", "warning: 32 samples"):
        assert line in said, (line, said)
    assert [path.name for path in out.parent.iterdir()] == ["metrics.json"]


def test_same_command_again_says_so(place: Place, written: Written) -> None:
    out, record, _ = written
    before = out.stat().st_mtime_ns
    again, said = place.run(out)
    assert again == record and out.stat().st_mtime_ns == before
    assert f"nothing to do: {out} holds these scores" in said and "  FID " in said


def test_another_request_is_refused(place: Place, written: Written) -> None:
    out = written[0]
    before = out.read_bytes()
    with pytest.raises(ValueError, match="is_splits is 10, asked for is 5; choose another --out"):
        place.run(out, is_splits=5)
    np.savez(place.path / "others.npz", arr_0=SAMPLES[::-1])
    with pytest.raises(ValueError, match="another request: samples_fingerprint is "):
        place.run(out, samples=place.path / "others.npz")
    assert out.read_bytes() == before


def test_stopped_anywhere_and_resumed(
    place: Place, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cache, so that the reference is measured too; a stop after every part."""
    out = tmp_path / "o" / "metrics.json"
    real = measuring._measure_part
    measured: list[str] = []

    def stops(*arguments: Any) -> Any:
        if len(measured) % 2:
            measured.append("stop")
            raise KeyboardInterrupt
        measured.append("part")
        return real(*arguments)

    monkeypatch.setattr(measuring, "_measure_part", stops)
    stopped = 0
    while not out.exists():
        try:
            _, said = place.run(out, cache_dir=tmp_path / "cache")
        except KeyboardInterrupt:
            stopped += 1
            assert (out.parent / "metrics.json.work").is_dir()
    # Two parts of each set, one per run.
    assert (stopped, measured.count("part")) == (3, 4)
    assert out.read_bytes() == written[0].read_bytes()
    # The half of the samples that an earlier run measured is counted.
    assert "samples: Inception features: 32/32 images" in said
    assert [path.name for path in out.parent.iterdir()] == ["metrics.json"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_work_of_another_request_is_kept(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    out = tmp_path / "metrics.json"
    monkeypatch.setattr(measuring, "_measure_part", stop)
    with pytest.raises(KeyboardInterrupt):
        place.run(out)
    before = sorted((tmp_path / "metrics.json.work").rglob("*"))
    message = "metrics.json.work belongs to another request: is_splits is 10"
    with pytest.raises(ValueError, match=message):
        place.run(out, is_splits=5)
    assert sorted((tmp_path / "metrics.json.work").rglob("*")) == before
    (tmp_path / "b.json.work").mkdir()
    (tmp_path / "b.json.work" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is no work folder of this command; move it"):
        place.run(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="c.json is no result of this command; choose"):
        place.run(tmp_path / "c.json")


@pytest.mark.parametrize("name", ["samples", "reference", "request.json", "cfg1.5"])
def test_names_of_outputs(place: Place, written: Written, tmp_path: Path, name: str) -> None:
    """None collides with a name in the working folder, or with the folder of the samples."""
    drawn: list[Path] = []

    def draw(folder: Path) -> Path:
        drawn.append(folder)
        return place.path / "samples.npz"

    record, _ = place.run(tmp_path / name, draw, samples="", model="m")
    assert record["metrics"] == written[1]["metrics"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert drawn == [tmp_path / f"{name.removesuffix('.json')}.samples"]


def test_warnings_are_said_before_the_work(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "_measure_part", stop)
    said: list[str] = []
    np.savez(tmp_path / "s.npz", arr_0=pictures(32, 1, 16)[..., :1])
    config = place.config(tmp_path / "m.json", samples=tmp_path / "s.npz")
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, None, said.append)
    text = "\n".join(said)
    for part in ("rank of at most 31", "16 x 16 pixels", "1/16 of the width", "samples are grey"):
        assert f"{part}" in text, part


def test_provenance_belongs_to_the_request(place: Place, tmp_path: Path) -> None:
    """A result that does not say how its samples were made is not taken for one that does."""
    np.savez(tmp_path / "samples.npz", arr_0=SAMPLES)
    place.run(tmp_path / "m.json", samples=tmp_path / "samples.npz")
    (tmp_path / "sample.json").write_text('{"count": 32}')
    with pytest.raises(
        ValueError, match="another request: sample_json_sha256 is nothing, asked for is "
    ):
        place.run(tmp_path / "m.json", samples=tmp_path / "samples.npz")


def test_two_processes_and_the_command(place: Place, written: Written, tmp_path: Path) -> None:
    """The real program, in two processes that share the parts, one device each: the features of
    eight devices are the same up to rounding."""
    out = tmp_path / "o" / "m.json"
    flags = [f"--samples={place.path / 'samples.npz'}", f"--inception={place.path / 'inception'}"]
    flags += [f"--reference={place.path / 'reference.npz'}", f"--out={out}"]
    arguments = ["evaluate", *flags, f"--cache_dir={tmp_path}"]
    said = run_on_two_processes(arguments)
    assert (
        f"wrote {out}" in said[0]
        and "features: 16/16 images" in said[0]
        and "images" not in said[1]
    )
    found = json.loads(out.read_text())
    assert_close(found["metrics"], written[1]["metrics"], rtol=2e-3)
    assert (found["devices"], written[1]["devices"]) == ("1 x cpu", "8 x cpu")
    assert [path.name for path in out.parent.iterdir()] == ["m.json"]
    before = out.read_bytes()
    assert "nothing to do" in tiny_runs.run(arguments) and out.read_bytes() == before
