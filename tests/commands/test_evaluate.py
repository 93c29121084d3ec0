"""The evaluate job: scores against a second implementation, sources, resuming, refusals."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lit_jax.commands.evaluate import job as evaluate_job
from lit_jax.commands.evaluate.job import evaluate
from lit_jax.commands.sample.job import Protocol, sample
from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from lit_jax.evaluation import measuring
from lit_jax.evaluation.network import FeatureExtractor, read_network
from lit_jax.evaluation.npz_images import NpzImages
from lit_jax.evaluation.reference import cache_file, open_reference
from lit_jax.evaluation.statistics import read_about
from support import evaluation_cases, tiny_runs
from support.evaluation_cases import pictures, save_inception, save_pngs
from support.inception_cases import TINY
from support.train_runs import run_on_two_processes

# Half of each set has nothing like it in the other: precision and recall are neither 0 nor 1.
SAMPLES, REFERENCE = pictures(32, seed=1), pictures(30, seed=2)
SAMPLES[16:] //= 8
REFERENCE[15:] = REFERENCE[15:] // 8 + 200


@dataclasses.dataclass(frozen=True)
class Place:
    """Files that the tests share; `run` evaluates and returns metrics.json and what was said."""

    path: Path

    def run(
        self, out: Path, draw: Callable[[Path], Path] | None = None, **changes: Any
    ) -> tuple[dict[str, Any], str]:
        said: list[str] = []
        evaluate(self.config(out, **changes), draw, said.append)
        return json.loads(out.read_text()), "\n".join(said)

    def config(self, out: Path, **changes: Any) -> EvaluateConfig:
        given = {"samples": self.path / "samples.npz", "inception": self.path / "inception"}
        reference = {"source": str(self.path / "reference.npz")}
        for name, value in changes.items():
            if name in {f.name for f in dataclasses.fields(ReferenceConfig)}:
                reference[name] = str(value) if isinstance(value, Path) else value
            else:
                given[name] = value
        given = {n: str(v) if isinstance(v, Path) else v for n, v in given.items()}
        return EvaluateConfig(reference=ReferenceConfig(**reference), out=str(out), **given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("evaluate")
    save_inception(path / "inception")
    np.savez(path / "samples.npz", arr_0=SAMPLES)
    np.savez(path / "reference.npz", arr_0=REFERENCE)
    return Place(path)


@pytest.fixture(scope="module")
def written(place: Place) -> tuple[Path, dict[str, Any], str]:
    """One evaluation, with its screen."""
    out = place.path / "first" / "metrics.json"
    return out, *place.run(out)


def _features(place: Place, name: str) -> list[np.ndarray]:
    images = NpzImages(place.path / name)
    extractor = FeatureExtractor(read_network(place.path / "inception"), 16)
    batches = [found for _, found in extractor.features(images, 0, images.count)]
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def _close(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-4) -> None:
    """Scores of two runs that need not have the same compiled program."""
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], value, rtol=rtol, atol=1e-9, err_msg=name)


def test_scores_equal_a_second_implementation(place: Place, written: Any) -> None:
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
    _close(metrics, expected, rtol=1e-6)
    assert 0 < precision < 1 and 0 < recall < 1 and metrics["fid"] > 0


def test_record_says_what_was_measured(place: Place, written: Any) -> None:
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


def test_same_command_again_says_so(place: Place, written: Any) -> None:
    out, record, _ = written
    before = out.stat().st_mtime_ns
    again, said = place.run(out)
    assert again == record and out.stat().st_mtime_ns == before
    assert f"nothing to do: {out} holds these scores" in said and "  FID " in said


def test_another_request_is_refused(place: Place, written: Any) -> None:
    out = written[0]
    before = out.read_bytes()
    with pytest.raises(ValueError, match="is_splits is 10, asked for is 5; choose another --out"):
        place.run(out, is_splits=5)
    np.savez(place.path / "others.npz", arr_0=SAMPLES[::-1])
    with pytest.raises(ValueError, match="another request: samples_fingerprint is "):
        place.run(out, samples=place.path / "others.npz")
    assert out.read_bytes() == before


def test_stopped_anywhere_and_resumed(
    place: Place, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cache, so that the reference is measured too; a stop after every part."""
    out = tmp_path / "o" / "metrics.json"
    real, measured = measuring._measure_part, []

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
            place.run(out, cache_dir=tmp_path / "cache")
        except KeyboardInterrupt:
            stopped += 1
            assert (out.parent / "metrics.json.work").is_dir()
    # Two parts of each set, one per run.
    assert (stopped, measured.count("part")) == (3, 4)
    assert out.read_bytes() == written[0].read_bytes()
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
    with pytest.raises(ValueError, match="metrics.json.work belongs to another request: is_splits"):
        place.run(out, is_splits=5)
    (tmp_path / "b.json.work").mkdir()
    (tmp_path / "b.json.work" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is no working folder of this job; move it"):
        place.run(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="c.json exists and is no result of this job"):
        place.run(tmp_path / "c.json")


# --- samples ---


def test_folders_of_pngs_give_the_same_scores(place: Place, written: Any, tmp_path: Path) -> None:
    samples = save_pngs(tmp_path / "samples", SAMPLES)
    reference = save_pngs(tmp_path / "reference", REFERENCE)
    record, said = place.run(
        tmp_path / "m.json", samples=samples, source=reference, inception_batch_size=8
    )
    _close(record["metrics"], written[1]["metrics"])
    assert record["samples"]["images_sha256"] == written[1]["samples"]["images_sha256"]
    assert record["reference"]["images_sha256"] == written[1]["reference"]["images_sha256"]
    assert record["reference"]["kind"] == "folder"
    assert len(list(tmp_path.glob("reference-*.statistics.npz"))) == 1


class Photos(tfds.core.GeneratorBasedBuilder):
    """Twenty photographs of different sizes."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="png")})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"test": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(20):
            file = io.BytesIO()
            Image.fromarray(pictures(1, index, 60)[0, : 30 + index, :40]).save(file, "PNG")
            file.seek(0)
            yield index, {"image": file}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    Photos(data_dir=str(path), file_format="array_record").download_and_prepare()
    return path


def test_running_model(place: Place, teacher: Path, photos: Path, tmp_path: Path) -> None:
    """Draws samples beside the output, takes over how they were made; a TFDS reference."""
    protocol = Protocol("ddim", "ddim2", cfg_scale=2.0, seed=3)

    def draw(out: Path) -> Path:
        return sample(teacher, out, 12, protocol, (4, 7), log=lambda text: None)

    out = tmp_path / "metrics.json"
    reference = {"source": "tfds:photos:test", "data_dir": photos, "resolution": 8}
    given = {"samples": "", "model": teacher, "cache_dir": tmp_path / "cache", "images": 15}
    record, said = place.run(out, draw, **given, **reference)
    samples = record["samples"]
    stored = json.loads((tmp_path / "metrics.samples" / "sample.json").read_text())
    assert samples["weights_sha256"] == stored["weights_sha256"]
    assert (samples["sampler"], samples["steps"]) == ("ddim", "ddim2")
    assert samples["network_evaluations"] == 4 and samples["guidance_scale"] == 2.0
    assert (samples["guidance_channels"], samples["guidance_interval"]) == ("three", None)
    assert (samples["seed"], samples["labels"], samples["count"]) == (3, [4, 7], 12)
    assert samples["made_by"].endswith("sample.json") and samples["dtype"] == "float32"
    assert (record["reference"]["kind"], record["reference"]["count"]) == ("tfds", 20)
    assert (record["reference"]["pairwise_count"], record["reference"]["resolution"]) == (15, 8)
    assert record["metrics"]["precision"] is not None
    warnings = "\n".join(record["warnings"])
    assert "samples are grey" in warnings and "does not say" not in warnings
    (cache,) = (tmp_path / "cache").iterdir()
    assert cache.name.startswith("photos-test-8px-")
    assert "nothing to do" in place.run(out, draw, **given, **reference)[1]
    # Another request is refused before anything is drawn for it.
    with pytest.raises(ValueError, match="another request: .*resolution is 8, asked for is 0"):
        place.run(out, lambda folder: pytest.fail("drawn"), **given)
    # The file alone knows where it comes from.
    again, _ = place.run(tmp_path / "b.json", samples=tmp_path / "metrics.samples/samples.npz")
    assert again["samples"]["weights_sha256"] == stored["weights_sha256"]
    assert "samples have 8 x 8 pixels, the reference 24 x 24" in "\n".join(again["warnings"])


def test_home_is_found(place: Place, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    config = ReferenceConfig("tfds:photos:test", f"~/{photos.name}", 8)
    cache = open_reference(config, read_network(place.path / "inception")).cache
    assert cache is not None and cache.parent == photos


def test_sample_folders_that_cannot_be_used(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    np.savez(folder / "samples.npz", arr_0=SAMPLES)
    with pytest.raises(ValueError, match="s is not finished: .*run the same sample command again"):
        place.run(tmp_path / "m.json", samples=folder)
    (folder / "sample.json").write_text('{"count": 31, "dtype": "bfloat16"}')
    with pytest.raises(ValueError, match="speaks of 31 samples, .* holds 32"):
        place.run(tmp_path / "m.json", samples=folder)
    (folder / "samples.npz").rename(folder / "latents.npz")
    with pytest.raises(ValueError, match="only latents: sample with --vae"):
        place.run(tmp_path / "m.json", samples=folder)
    (folder / "latents.npz").rename(folder / "samples.npz")
    (folder / "sample.json").write_text('{"count": 32, "dtype": "bfloat16"}')
    record, _ = place.run(tmp_path / "m.json", samples=folder)
    warnings = "\n".join(record["warnings"])
    assert "sample.json does not say: model, weights_sha256, windows, sampler" in warnings
    assert "drawn in bfloat16" in warnings and record["samples"]["dtype"] == "bfloat16"


# --- references ---


def test_statistics_are_kept_and_found_again(
    place: Place, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _kept(place)
    before = cache.read_bytes()
    record, said = place.run(tmp_path / "a.json")
    assert "reference: Inception features" not in said and "samples: Inception features" in said
    assert record == written[1] and cache.read_bytes() == before
    # The kept file is a reference of its own, without the images.
    record, said = place.run(tmp_path / "b.json", source=cache)
    assert record["metrics"] == written[1]["metrics"]
    assert record["reference"]["kind"] == "statistics of lit_jax"
    assert record["reference"]["images_sha256"] == written[1]["reference"]["images_sha256"]
    # Fewer images for the pairwise scores: measured again, into a file of its own.
    fewer, said = place.run(tmp_path / "c.json", images=25)
    assert "kept the statistics" in said
    assert "kept the statistics" not in place.run(tmp_path / "d.json")[1]
    assert cache.read_bytes() == before
    # The kept file has the same 25, and says how many there are; more than it has are refused.
    again, _ = place.run(tmp_path / "e.json", source=cache, images=25)
    assert again["metrics"] == fewer["metrics"] != record["metrics"]
    assert again["reference"]["pairwise_count"] == again["request"]["reference_images"] == 25
    small = Path(said.split("kept the statistics of the reference in ")[1].split("\n")[0])
    with pytest.raises(ValueError, match="--reference_images 26: .* of 25 images; use at most so"):
        place.run(tmp_path / "f.json", source=small, images=26)
    assert (
        place.run(tmp_path / "g.json", source=cache, images=99)[0]["metrics"] == record["metrics"]
    )


def test_statistics_that_are_swapped_under_a_job(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours lie between the look at the cache and its use."""
    cache_dir = tmp_path / "cache"
    place.run(tmp_path / "a.json", cache_dir=cache_dir)
    (cache,) = cache_dir.iterdir()
    whole = cache.read_bytes()
    real = evaluate_job.measure

    def swap(run: Any) -> None:
        real(run)
        with np.load(cache) as stored:
            arrays = dict(stored)
        about = json.loads(str(arrays["about"])) | {"fingerprint": "other images"}
        np.savez(cache, **(arrays | {"about": np.asarray(json.dumps(about))}))

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_job, "measure", swap)
        with pytest.raises(ValueError, match="npz was replaced while this ran; run the same com"):
            place.run(tmp_path / "b.json", cache_dir=cache_dir)
    assert not (tmp_path / "b.json").exists()
    # Then it is noticed at the start, and measured again.
    assert "kept the statistics" in place.run(tmp_path / "b.json", cache_dir=cache_dir)[1]
    assert cache.read_bytes() == whole


def test_samples_as_reference(place: Place, written: Any, tmp_path: Path) -> None:
    """The images, not the picture of the grid beside them."""
    folder = save_pngs(tmp_path / "drawn", REFERENCE[:1])
    np.savez(folder / "samples.npz", arr_0=REFERENCE)
    with pytest.raises(ValueError, match="without sample.json: not finished"):
        place.run(tmp_path / "m.json", source=folder)
    (folder / "sample.json").write_text("{}")
    record, _ = place.run(tmp_path / "m.json", source=folder)
    assert record["metrics"] == written[1]["metrics"]
    assert record["reference"]["kind"] == "samples"
    assert len(list(tmp_path.glob("drawn-*.statistics.npz"))) == 1


@pytest.mark.parametrize("name", ["samples", "reference", "request.json", "cfg1.5"])
def test_names_of_outputs(place: Place, written: Any, tmp_path: Path, name: str) -> None:
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


def test_remaining_time_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images in 20 s; the eighty that were there say nothing about the speed."""
    clock = iter([0.0, 0.0, 20.0])
    monkeypatch.setattr(evaluate_job.time, "perf_counter", lambda: next(clock))
    said: list[str] = []
    progress = evaluate_job.Progress("samples", 100, 1, said.append)
    progress(80, True)
    progress(10, False)
    assert said == ["samples: 90 of about 100, 0.5 images/s, ETA 20.0 s"]


def test_changed_reference_is_measured_again(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "r.npz"
    np.savez(source, arr_0=REFERENCE)
    first, _ = place.run(tmp_path / "a.json", source=source)
    np.savez(source, arr_0=REFERENCE[::-1][:29])
    second, said = place.run(tmp_path / "b.json", source=source)
    assert "kept the statistics" in said
    assert second["reference"]["count"] == 29 and second["metrics"] != first["metrics"]


def test_statistics_of_another_network_are_refused(
    place: Place, written: Any, tmp_path: Path
) -> None:
    cache = _kept(place)
    for name, config, seed in (
        ("weights", TINY, 1),
        ("resizing", dataclasses.replace(TINY, preprocessing="pytorch_fid"), 0),
    ):
        inception = save_inception(tmp_path / name, config, seed)
        with pytest.raises(ValueError, match="statistics of another network: Inception"):
            place.run(tmp_path / "m.json", source=cache, inception=inception)
        # From the images it is measured anew, into a file of its own.
        record, said = place.run(tmp_path / f"{name}.json", inception=inception)
        assert "kept the statistics" in said
        assert record["metrics"]["fid"] != written[1]["metrics"]["fid"]
    names = {path.name.rsplit("-", 1)[0] for path in place.path.glob("reference-*.statistics.npz")}
    assert len(names) == 3
    assert "preprocessing 'pytorch_fid' is not that of the ADM suite" in str(record["warnings"])


def _kept(place: Place) -> Path:
    """What the first evaluation kept of the reference."""
    start = f"reference-{read_network(place.path / 'inception').sha256[:8]}-tf1-"
    for path in place.path.glob(f"{start}*.statistics.npz"):
        about = read_about(path)
        assert about is not None
        if about["kept"] == len(REFERENCE):
            return path
    raise AssertionError("nothing was kept")


def _adm_file(place: Place, path: Path, **arrays: np.ndarray) -> Path:
    """The layout of the ADM suite: statistics of all images, and a part of the images."""
    cache = _kept(place)
    with np.load(cache) as stored:
        statistics = {name: stored[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(path, **(statistics | arrays))  # type: ignore[arg-type]
    return path


def test_adm_file_with_statistics_and_images(place: Place, written: Any, tmp_path: Path) -> None:
    source = _adm_file(place, tmp_path / "adm.npz", arr_0=REFERENCE[8:])
    record, _ = place.run(tmp_path / "m.json", source=source)
    metrics, reference = record["metrics"], record["reference"]
    # Distances come from the statistics, precision and recall from the images.
    assert metrics["fid"] == written[1]["metrics"]["fid"]
    assert metrics["sfid"] == written[1]["metrics"]["sfid"]
    assert metrics["recall"] != written[1]["metrics"]["recall"]
    assert (reference["kind"], reference["count"]) == ("ADM npz", None)
    assert (reference["pairwise_count"], reference["inception_sha256"]) == (22, None)
    assert reference["mean_mismatch"] < 3
    warnings = "\n".join(record["warnings"])
    assert "does not say which network its statistics come from" in warnings
    assert "as chance allows" not in warnings


def test_statistics_that_do_not_fit_their_images_are_noticed(
    place: Place, written: Any, tmp_path: Path
) -> None:
    cache = _kept(place)
    with np.load(cache) as stored:
        shifted = stored["mu"] + 3 * np.sqrt(np.diag(stored["sigma"]))
    source = _adm_file(place, tmp_path / "adm.npz", arr_0=REFERENCE, mu=shifted)
    record, _ = place.run(tmp_path / "m.json", source=source)
    assert record["reference"]["mean_mismatch"] > 100
    assert "made with another network or preprocessing" in "\n".join(record["warnings"])


def test_file_with_statistics_only(place: Place, written: Any, tmp_path: Path) -> None:
    cache = _kept(place)
    with np.load(cache) as stored:
        np.savez(tmp_path / "stats.npz", mu=stored["mu"], sigma=stored["sigma"])
    record, said = place.run(tmp_path / "m.json", source=tmp_path / "stats.npz")
    assert record["metrics"]["fid"] == written[1]["metrics"]["fid"]
    assert record["absent"]["sfid"] == "the reference has no mu_s and sigma_s"
    for name in ("precision", "recall", "kid"):
        assert record["metrics"][name] is None
        assert "statistics only, no images" in record["absent"][name]
    assert "(the reference has statistics only, no images)" in said


# --- refused before anything is compiled or written ---

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "samples": ({"samples": "nowhere.npz"}, "--samples nowhere.npz does not exist"),
    "reference": ({"source": "nowhere"}, "--reference nowhere does not exist"),
    "inception": ({"inception": "nowhere"}, "nowhere is not a model folder"),
    "no inception": ({"inception": "{teacher}"}, "holds a DiT; --inception is the model folder"),
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
    "out": ({"out": "{folder}"}, "is a folder; give the name of a file"),
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


def test_two_processes_and_the_command(place: Place, written: Any, tmp_path: Path) -> None:
    """The real program, in two processes that share the parts, one device each: the features of
    eight devices are the same up to rounding."""
    out = tmp_path / "o" / "m.json"
    flags = [f"--samples={place.path / 'samples.npz'}", f"--inception={place.path / 'inception'}"]
    flags += [f"--reference={place.path / 'reference.npz'}", f"--out={out}"]
    arguments = ["evaluate", *flags, f"--cache_dir={tmp_path}"]
    said = run_on_two_processes(arguments)
    assert f"wrote {out}" in said[0] and "16 images in" in said[0] and "images" not in said[1]
    found = json.loads(out.read_text())
    _close(found["metrics"], written[1]["metrics"], rtol=2e-3)
    assert (found["devices"], written[1]["devices"]) == ("1 x cpu", "8 x cpu")
    assert [path.name for path in out.parent.iterdir()] == ["m.json"]
    before = out.read_bytes()
    assert "nothing to do" in tiny_runs.run(arguments) and out.read_bytes() == before
