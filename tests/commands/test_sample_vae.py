"""Samples of a model of latents: decoding, and that the VAE is the right one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_jax.checkpoints.model_folder import load_model
from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.config.protocol import Protocol
from lit_jax.data.transforms import to_uint8
from support import autoencoder_cases, tiny_runs
from support.models import load_model_dir, vae_identity
from support.sampling import sample

COUNT, PROTOCOL = 21, Protocol(steps="3", seed=2)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as content:
        return dict(content)


def written_vae(path: Path, **fields: Any) -> Path:
    model = autoencoder_cases.tiny(**fields)
    save_model_dir(path, model.config, autoencoder_cases.params_of(model), {"source": "random"})
    return path


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scale that shows: the norms of the decoder hide a small one from latents of a random
    model."""
    return written_vae(tmp_path_factory.mktemp("vae") / "tiny-vae", scaling_factor=30.0)


@pytest.fixture(scope="module")
def decoded(latent_model: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and latents on eight devices, four or fewer per device and decoded one by one."""
    out, said = tmp_path_factory.mktemp("decoded") / "s", list[str]()
    sample(
        latent_model,
        out,
        COUNT,
        PROTOCOL,
        log=said.append,
        vae=vae,
        save_latents=True,
        shard_size=16,
        decode_batch_size=1,
    )
    assert any("does not record its VAE; tiny-vae is used" in t for t in said)
    return out


def test_images_are_the_decoded_latents(decoded: Path, vae: Path) -> None:
    samples, latents = arrays(decoded / "samples.npz"), arrays(decoded / "latents.npz")
    assert samples["arr_0"].shape == (COUNT, 16, 16, 3) and samples["arr_0"].dtype == np.uint8
    assert latents["arr_0"].shape == (COUNT, 8, 8, 4) and latents["arr_0"].dtype == np.float32
    np.testing.assert_array_equal(samples["labels"], latents["labels"])
    model = load_model(vae)
    plain = latents["arr_0"] / model.config.scaling_factor
    expected = to_uint8(autoencoder_cases.decode(model, plain)).astype(int)
    assert expected.std() > 5 and np.abs(samples["arr_0"] - expected).max() <= 1

    record = json.loads((decoded / "sample.json").read_text())
    assert record["vae"] == dataclasses.asdict(vae_identity(vae))
    assert record["vae_named_by_model"] is False


def test_a_real_process_draws_the_same(
    decoded: Path, latent_model: Path, vae: Path, tmp_path: Path
) -> None:
    """On one device, in batches that are decoded in parts; without latents."""
    flags = {"model": latent_model, "vae": vae, "out": tmp_path / "s", "num_samples": COUNT}
    flags |= {"steps": 3, "seed": 2, "batch_size": 6, "decode_batch_size": 4}
    output = tiny_runs.run(["sample", *(f"--{name}={value}" for name, value in flags.items())])
    assert "note: " in output
    assert not (tmp_path / "s/latents.npz").exists()
    images = [arrays(out / "samples.npz")["arr_0"].astype(int) for out in (decoded, tmp_path / "s")]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_latents_without_a_vae(decoded: Path, latent_model: Path, tmp_path: Path) -> None:
    out = sample(latent_model, tmp_path / "s", 3, PROTOCOL, log=print, save_latents=True)
    assert sorted(p.name for p in out.iterdir()) == ["latents.npz", "request.json", "sample.json"]
    latents = arrays(out / "latents.npz")
    assert latents["labels"].tolist() == [0, 1, 2]
    expected = arrays(decoded / "latents.npz")["arr_0"][:3]
    np.testing.assert_allclose(latents["arr_0"], expected, rtol=1e-4, atol=1e-3)
    assert json.loads((out / "sample.json").read_text())["vae"] is None


def naming(path: Path, vae: Path, **changes: Any) -> Path:
    """A model of latents whose config.json says which VAE it was trained with."""
    tiny_runs.save_model(path, in_channels=4, patch_size=8, depth=1)
    content = json.loads((path / "config.json").read_text())
    content["vae"] = dataclasses.asdict(vae_identity(vae)) | changes
    (path / "config.json").write_text(json.dumps(content))
    return path


def test_the_vae_a_model_names_is_accepted(vae: Path, tmp_path: Path) -> None:
    """Its weights count, not the name of its folder: a copy is the same request."""
    model = naming(tmp_path / "m", vae, id="another name")
    said: list[str] = []
    sample(model, tmp_path / "s", 2, PROTOCOL, log=said.append, vae=vae)
    assert not any("does not record" in text for text in said)
    record = json.loads((tmp_path / "s/sample.json").read_text())
    assert record["vae_named_by_model"] is True

    config, params = load_model_dir(vae)
    save_model_dir(tmp_path / "copy", config, params, {})
    said.clear()
    sample(model, tmp_path / "s", 2, PROTOCOL, log=said.append, vae=tmp_path / "copy")
    assert said == [f"nothing to do: {tmp_path / 's'} holds these 2 samples"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no vae": ({}, r"is a model of latents \(4 channels\): give the folder of its VAE with --vae"),
    "missing": ({"vae": "nowhere"}, "nowhere is not a model folder"),
    "no network": ({"vae": "latent"}, r"--vae .* holds a DiT; a VAE \(AutoencoderKL\) is needed"),
    "channels": ({"vae": "eight"}, "has latents of 8 channels, .* has in_channels 4; give the VAE"),
    "image": ({"vae": "two"}, "makes images of 2 channels; 1 or 3 can be written"),
    "weights": ({"vae": "wide", "model": "naming"}, "belong to the VAE tiny-vae .* is wide "),
    "scale": ({"vae": "vae", "model": "rescaled"}, "scale 0.5.* is tiny-vae"),
    "named": ({"model": "naming"}, r"give the folder of its VAE tiny-vae \(sha256 .*\) with --vae"),
    "request": ({"out": "decoded", "vae": "wide"}, "vae.sha256 is .*, asked for is "),
}


@pytest.fixture(scope="module")
def folders(
    decoded: Path, latent_model: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("vaes")
    return {
        "decoded": decoded,
        "latent": latent_model,
        "vae": vae,
        "eight": written_vae(path / "eight", latent_channels=8),
        "two": written_vae(path / "two", out_channels=2),
        "wide": written_vae(path / "wide", block_out_channels=(4, 4)),
        "naming": naming(path / "naming", vae),
        "rescaled": naming(path / "rescaled", vae, scaling_factor=0.5),
    }


@pytest.mark.parametrize("case", REFUSED)
def test_refused(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    changes, named = REFUSED[case]
    given: dict[str, Any] = {"model": "latent", "out": tmp_path / "s"} | changes
    given = {name: folders.get(value, value) for name, value in given.items()}
    with pytest.raises(ValueError, match=named):
        sample(num_samples=COUNT, protocol=PROTOCOL, log=print, shard_size=16, **given)
    assert list(tmp_path.iterdir()) == []
