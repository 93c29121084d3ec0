"""The generate job: its pictures, what they depend on, and what lies beside them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from lit_jax.checkpoints.writing import save_model_dir
from lit_jax.commands.generate import memory as generate_memory
from lit_jax.commands.generate import phases as generate_phases
from lit_jax.commands.generate.checks import check
from lit_jax.commands.generate.job import generate
from lit_jax.diffusion.samplers import SAMPLERS
from lit_jax.models.autoencoder.model import AutoencoderKL
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.sampling.text_features import load_text_encoder
from support import generate_cases, tiny_runs
from support.generate_cases import PROMPTS, Folders, config_for, pixels, prompt_file
from support.models import load_model_dir
from support.text_encoder_cases import write_text_encoder

Draw = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return generate_cases.save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def draw(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Draws the picture of a request once; of equal requests only the first is drawn."""
    place, drawn = tmp_path_factory.mktemp("drawn"), dict[str, np.ndarray]()

    def picture(models: Folders = folders, **changes: Any) -> np.ndarray:
        name = repr((models, sorted(changes.items())))
        if name not in drawn:
            out = place / f"{len(drawn)}.png"
            generate(config_for(models, out, **changes), lambda _: None)
            drawn[name] = pixels(out)
        return drawn[name]

    return picture


def pixart(folders: Folders) -> tuple[PixArtConfig, Any]:
    config, params = load_model_dir(folders.model)
    assert isinstance(config, PixArtConfig)
    return config, params


def said_by(config: Any) -> list[str]:
    said: list[str] = []
    generate(config, said.append)
    return said


# --- one prompt ---


def test_a_process_writes_a_picture(folders: Folders, draw: Draw, tmp_path: Path) -> None:
    """What it says, and that the picture says how it was made."""
    out = tmp_path / "new" / "image.png"
    arguments = ["generate", *folders.flags(), f"--prompt={PROMPTS[0]}", f"--out={out}"]
    output = tiny_runs.run([*arguments, "--steps=3", "--batch_size=1"])
    for phase in ("prompts to features", "features to latents", "latents to images"):
        assert re.search(rf"{phase} .* s +peak memory [\d.]+ [GM]B\n", output), output
    assert re.search(r"T5 .*parameters.*\n.*PixArt .*parameters.*\n.*AutoencoderKL", output)
    assert re.search(r"at most .* at a time; memory: .* GB free", output)
    assert output.index("at most") < output.index("does not record its")
    assert "1 image of 16 x 16" in output and "6 network evaluations" in output
    assert output.endswith(f"wrote {out}\n") and [p.name for p in out.parent.iterdir()] == [
        out.name
    ]

    with Image.open(out) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
        text = dict(image.text)  # type: ignore[attr-defined]
    assert text["prompt"] == PROMPTS[0]
    settings = json.loads(text["settings"])
    assert settings["protocol"] == {
        "sampler": "dpm_solver",
        "steps": "3",
        "cfg_scale": 4.5,
        "cfg_channels": "all",
        "seed": 0,
    }
    assert settings["dtype"] == "float32"  # what "auto" is on a CPU
    assert len(settings["weights_sha256"]) == 64 and settings["vae"]["id"] == "vae"
    assert np.ptp(pixels(out)) > 100
    assert np.abs(pixels(out) - draw()).max() <= 1

    assert f"nothing to do: {out} holds 1 image" in tiny_runs.run([*arguments, "--steps=3"])


# What a request changes.
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": PROMPTS[1]},
    "seed": {"seed": 1},
    "steps": {"steps": "4"},
    "guidance": {"cfg_scale": 2.0},
    "no guidance": {"cfg_scale": 1.0},
    "negative prompt": {"negative_prompt": "a blue square"},
    "null mask": {"null_mask": "own"},
    "max length": {"max_length": 5},
    "bfloat16": {"dtype": "bfloat16"},
    **{name: {"sampler": name, "steps": "7"} for name in SAMPLERS if name != "dpm_solver"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_noticed(draw: Draw, option: str) -> None:
    changes = OPTIONS[option]
    # Three steps of the two DPM solvers ask at the same times, and seven at nearly the same: equal
    # programs give equal pictures, so that one grey level is a difference.
    other_sampler = "sampler" in changes
    without = draw(steps=changes["steps"]) if other_sampler else draw()
    picture = draw(**changes)
    assert picture.shape == without.shape
    assert np.abs(picture - without).max() > (0 if other_sampler else 1)
    if option in ("steps", "bfloat16"):  # the same picture, in other strokes
        assert np.abs(picture - draw()).mean() < np.abs(draw(seed=1) - draw()).mean()


def test_sizes(draw: Draw) -> None:
    assert draw(size=(32, 16)).shape == (32, 16, 3)
    assert draw(size=(16, 48)).shape == (16, 48, 3)


def test_aspect_ratio(folders: Folders, tmp_path: Path) -> None:
    """1:2 of PixArt's table is 1408 x 704 at 1024."""
    large = generate_cases.save_pixart(tmp_path / "large", input_size=128)
    models = dataclasses.replace(folders, model=large)
    for asked, size in (({}, (256, 256)), ({"aspect_ratio": "1:2"}, (352, 176))):
        assert check(config_for(models, tmp_path / "i.png", **asked)).size == size


def test_tiles(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile is no tile; several leave their traces."""
    assert np.abs(draw(tile=True) - draw()).max() <= 1
    decode = AutoencoderKL.decode_tiled
    seen: list[tuple[int, ...]] = []

    def small(model: Any, latents: Any) -> Any:
        seen.append(latents.shape)
        return decode(model, latents, tile=4, overlap=2)

    monkeypatch.setattr(AutoencoderKL, "decode_tiled", small)
    tiled = draw(tile=True, seed=2)
    assert seen == [(1, 8, 8, 4)]
    assert 0 < np.abs(tiled - draw(seed=2)).mean() < 30


def test_several_images_and_their_grid(folders: Folders, draw: Draw, tmp_path: Path) -> None:
    config = config_for(folders, tmp_path / "i.png", num_images=3)
    generate(config, lambda _: None)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["i.png", "i_0.png", "i_1.png", "i_2.png"]
    images = [pixels(tmp_path / f"i_{k}.png") for k in range(3)]
    assert np.abs(images[0] - draw()).max() <= 1
    assert min(np.abs(images[k] - images[k - 1]).max() for k in range(3)) > 10
    grid = pixels(tmp_path / "i.png")
    np.testing.assert_array_equal(grid[1:33, 1:33].reshape(16, 2, 16, 2, 3)[:, 0, :, 0], images[0])
    assert "nothing to do" in said_by(config)[-1]
    (tmp_path / "i_1.png").unlink()
    generate(config, lambda _: None)
    np.testing.assert_array_equal(pixels(tmp_path / "i_1.png"), images[1])


# --- what an image depends on ---


def test_neither_place_nor_batch_nor_devices(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image k of a prompt is the same in another file, batch, count, and on one device."""
    first = prompt_file(tmp_path / "a.txt", PROMPTS[:5])
    config = config_for(folders, tmp_path / "a", prompt_file=first, num_images=2, batch_size=8)
    generate(config, lambda _: None)
    second = prompt_file(tmp_path / "b.txt", [PROMPTS[7], PROMPTS[3], PROMPTS[0]])
    device = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: device)
    config = config_for(folders, tmp_path / "b", prompt_file=second, batch_size=2)
    generate(config, lambda _: None)
    for old, new in (("00003_0", "00001"), ("00000_0", "00002")):
        difference = pixels(tmp_path / "a" / f"{old}.png") - pixels(tmp_path / "b" / f"{new}.png")
        assert np.abs(difference).max() <= 1
    record = json.loads((tmp_path / "a" / "generate.json").read_text())
    assert record["made"][3] == {"prompt": PROMPTS[3], "images": ["00003_0.png", "00003_1.png"]}
    assert (record["num_images"], record["devices"]) == (2, "8 x cpu")


def test_the_null_caption_of_the_model(folders: Folders, draw: Draw, tmp_path: Path) -> None:
    """The stored one is used, unless there is a negative prompt; without one, that of the T5."""
    config, params = pixart(folders)
    params["y_embedder"]["null_caption"] = -params["y_embedder"]["null_caption"]
    save_model_dir(tmp_path / "other", config, params, {})
    other = dataclasses.replace(folders, model=tmp_path / "other")
    assert np.abs(draw(other) - draw()).max() > 1
    away = {"negative_prompt": "a blue square"}
    assert np.abs(draw(other, **away) - draw(**away)).max() <= 1

    del params["y_embedder"]["null_caption"]
    config = dataclasses.replace(config, model_max_length=None)
    save_model_dir(tmp_path / "none", config, params, {})
    none = dataclasses.replace(folders, model=tmp_path / "none")
    text = {"max_length": 30}
    assert np.abs(draw(none, **text) - draw()).max() > 1
    # The same as a model that stores it, under either mask.
    features_1xLxD, _ = load_text_encoder(folders.text_encoder).features([""], 30, 1)
    config = dataclasses.replace(config, model_max_length=30)
    params["y_embedder"]["null_caption"] = features_1xLxD[0]
    save_model_dir(tmp_path / "stored", config, params, {})
    stored = dataclasses.replace(folders, model=tmp_path / "stored")
    for mask in ("prompt", "own"):
        pictures = [draw(models, null_mask=mask, **text) for models in (none, stored)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_sizes_as_conditions(folders: Folders, tmp_path: Path) -> None:
    """A model with micro-conditions is told the height and width of the picture."""
    micro = generate_cases.save_pixart(tmp_path / "micro", micro_condition=True)
    models = dataclasses.replace(folders, model=micro)
    seen: list[Any] = []
    conditions = generate_phases.conditions

    def watched(*given: Any) -> Any:
        seen.append(conditions(*given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_phases, "conditions", watched)
        generate(config_for(models, tmp_path / "i.png", size=(16, 32)), lambda _: None)
    for cond in seen[0]:
        assert cond.img_hw.tolist() == [[16.0, 32.0]] and cond.aspect_ratio.tolist() == [[0.5]]


# --- what goes wrong later ---


def test_an_image_that_is_not_finite(folders: Folders, tmp_path: Path) -> None:
    config, params = pixart(folders)
    params["final_layer"]["linear"]["bias"][0] = np.nan
    save_model_dir(tmp_path / "nan", config, params, {})
    models = dataclasses.replace(folders, model=tmp_path / "nan")
    with pytest.raises(FloatingPointError, match="image 0 of 'a photo of a red circle' is not"):
        generate(config_for(models, tmp_path / "i.png"), lambda _: None)
    with pytest.raises(FloatingPointError, match="--dtype float32"):
        generate(config_for(models, tmp_path / "i.png", dtype="bfloat16"), lambda _: None)
    assert not (tmp_path / "i.png").exists()


def test_a_prompt_that_is_cut(folders: Folders, tmp_path: Path) -> None:
    said = said_by(config_for(folders, tmp_path / "i.png", max_length=4))
    assert re.match(
        r"warning: the last \d+ tokens of the prompt 'a photo of a red circle'", said[0]
    )


def test_memory_is_told_and_refused(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(folders, tmp_path / "i.png")
    monkeypatch.setattr(generate_memory, "free_memory", lambda: (150_000, "memory"))
    said = said_by(config)
    assert any(line.startswith("warning: this may not fit into the memory") for line in said)
    monkeypatch.setattr(generate_memory, "free_memory", lambda: (90_000, "memory"))
    with pytest.raises(ValueError, match="the PixArt needs 0.13 MB .* 90 kB of memory are free"):
        generate(dataclasses.replace(config, out=str(tmp_path / "j.png")), lambda _: None)
    assert not (tmp_path / "j.png").exists()


def test_another_text_encoder_of_the_same_width(
    folders: Folders, draw: Draw, tmp_path: Path
) -> None:
    other = write_text_encoder(tmp_path / "other", seed=9)
    assert np.abs(draw(dataclasses.replace(folders, text_encoder=other)) - draw()).max() > 1
