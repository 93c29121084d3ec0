"""The evaluate job: kinds of references, and their statistics that are kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.commands.evaluate import job as evaluate_job
from support.evaluate_cases import REFERENCE, Place, Written, make_place
from support.evaluation_cases import save_inception, save_pngs
from support.inception_cases import TINY


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def written(place: Place) -> Written:
    return place.written()


def test_statistics_are_kept_and_found_again(
    place: Place, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = place.kept()
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

    def swap(*arguments: Any) -> None:
        real(*arguments)
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


def test_samples_as_reference(place: Place, written: Written, tmp_path: Path) -> None:
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


def test_changed_reference_is_measured_again(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "r.npz"
    np.savez(source, arr_0=REFERENCE)
    first, _ = place.run(tmp_path / "a.json", source=source)
    np.savez(source, arr_0=REFERENCE[::-1][:29])
    second, said = place.run(tmp_path / "b.json", source=source)
    assert "kept the statistics" in said
    assert second["reference"]["count"] == 29 and second["metrics"] != first["metrics"]


def test_statistics_of_another_network_are_refused(
    place: Place, written: Written, tmp_path: Path
) -> None:
    cache = place.kept()
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


def _adm_file(place: Place, path: Path, **arrays: np.ndarray) -> Path:
    """The layout of the ADM suite: statistics of all images, and a part of the images."""
    cache = place.kept()
    with np.load(cache) as stored:
        statistics = {name: stored[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(path, **(statistics | arrays))  # type: ignore[arg-type]
    return path


def test_adm_file_with_statistics_and_images(
    place: Place, written: Written, tmp_path: Path
) -> None:
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
    place: Place, written: Written, tmp_path: Path
) -> None:
    cache = place.kept()
    with np.load(cache) as stored:
        shifted = stored["mu"] + 3 * np.sqrt(np.diag(stored["sigma"]))
    source = _adm_file(place, tmp_path / "adm.npz", arr_0=REFERENCE, mu=shifted)
    record, _ = place.run(tmp_path / "m.json", source=source)
    assert record["reference"]["mean_mismatch"] > 100
    assert "made with another network or preprocessing" in "\n".join(record["warnings"])


def test_file_with_statistics_only(place: Place, written: Written, tmp_path: Path) -> None:
    cache = place.kept()
    with np.load(cache) as stored:
        np.savez(tmp_path / "stats.npz", mu=stored["mu"], sigma=stored["sigma"])
    record, said = place.run(tmp_path / "m.json", source=tmp_path / "stats.npz")
    assert record["metrics"]["fid"] == written[1]["metrics"]["fid"]
    assert record["absent"]["sfid"] == "the reference has no mu_s and sigma_s"
    for name in ("precision", "recall", "kid"):
        assert record["metrics"][name] is None
        assert "statistics only, no images" in record["absent"][name]
    assert "(the reference has statistics only, no images)" in said
