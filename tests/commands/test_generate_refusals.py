"""Every bad request to generate ends in one line, before a network is loaded or a file written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_jax import __main__ as door
from lit_jax.checkpoints.stored import CONFIG
from lit_jax.commands.generate import job
from lit_jax.config.generate import GenerateConfig
from support import generate_cases, tiny_runs
from support.generate_cases import PROMPTS, Folders, config_for, geneval_file, prompt_file
from support.models import text_encoder_identity, vae_identity
from support.text_encoder_cases import TINY_T5, write_text_encoder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models that fit and models that do not, and files of prompts."""
    path = tmp_path_factory.mktemp("places")
    good = generate_cases.save_all(path)
    broken = path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((good.model / "config.json").read_text())
    no_tokenizer = write_text_encoder(path / "no_tokenizer")
    (no_tokenizer / "tokenizer" / "spiece.model").unlink()
    wide = {**vars(TINY_T5), "d_model": 24}
    texts = {
        "empty": "\n# nothing\n\n",
        "bad_line": '{"prompt": "a"}\n\n{"prompt": \n',
        "no_prompt": '{"prompt": "a"}\n{"tag": "colors"}\n',
        "blank_prompt": '{"prompt": " "}\n',
        "no_object": '["a photo"]\n',
        "good": "a photo\n",
    }
    for name, text in texts.items():
        (path / f"{name}.txt").write_text(text)
    (path / "latin.txt").write_bytes("a café".encode("latin-1"))
    return {
        **good.names(),
        "folder": str(path),
        "broken": str(broken),
        "no_tokenizer": str(no_tokenizer),
        "wide_t5": str(write_text_encoder(path / "wide", type(TINY_T5)(**wide))),
        "dit": str(tiny_runs.save_model(path / "dit")),
        "vae_of_3": str(generate_cases.save_vae(path / "vae3", latent_channels=3)),
        "vae_of_2_colours": str(generate_cases.save_vae(path / "vae2", out_channels=2)),
    }


# On top of a request that is in order: flags, and what the line must say.
REFUSED: dict[str, tuple[list[str], str]] = {
    "not unicode": (["--prompt=a \udcff cat"], "is no Unicode text (character 2)"),
    "no model": (["--model=nowhere"], "nowhere is not a model folder"),
    "no text encoder": (["--text_encoder=nowhere"], "nowhere is not a model folder"),
    "no vae": (["--vae=nowhere"], "nowhere is not a model folder"),
    "no weights": (["--model={broken}"], "broken is incomplete"),
    "empty": (["--vae="], "--vae is empty"),
    "dit": (
        ["--model={dit}"],
        "holds a DiT; a denoiser on captions such as a PixArt (for class labels: `sample`)",
    ),
    "vae as model": (["--model={vae}"], "holds an AutoencoderKL; a denoiser on captions"),
    "model as vae": (["--vae={model}"], "holds a PixArt; a VAE (AutoencoderKL) is needed"),
    "vae as text encoder": (
        ["--text_encoder={vae}"],
        "holds an AutoencoderKL; a text encoder",
    ),
    "tokenizer": (["--text_encoder={no_tokenizer}"], "has no tokenizer/spiece.model"),
    "channels": (["--vae={vae_of_3}"], "has latents of 3 channels, "),
    "colours": (["--vae={vae_of_2_colours}"], "makes images of 2 channels; 1 or 3 can be written"),
    "width": (
        ["--text_encoder={wide_t5}"],
        "features of 24 channels, {model} has caption_cha",
    ),
    "size": (["--size=768x1340"], "must be multiples of 16; the nearest is 768x1344"),
    "tiny size": (["--size=3x16"], "must be multiples of 16; the nearest is 16x16"),
    "no size": (["--size=0x16"], "--size (0, 16) must be at least 1 x 1"),
    "form of size": (["--size=768"], "--size '768' is not of the form HEIGHTxWIDTH, as 768x1344"),
    "ratio": (["--aspect_ratio=wide"], "'wide' is not of the form WIDTH:HEIGHT, as 16:9"),
    "long ratio": (["--aspect_ratio=1:9"], "height / width is 9 / 1 = 9; it must be within"),
    "both sizes": (
        ["--size=16x16", "--aspect_ratio=1:1"],
        "--aspect_ratio 1:1 contradict; give one",
    ),
    "empty prompt": (["--prompt="], "--prompt '' is empty; give a text"),
    "blank prompt": (["--prompt= "], "--prompt ' ' is empty; give a text"),
    "both sources": (["--geneval=x"], "--prompt and --geneval are given; choose one of them"),
    "no file": (["--prompt=", "--prompt_file=no.txt"], "no.txt cannot be read: No such file"),
    "folder as file": (["--prompt=", "--prompt_file={folder}"], "cannot be read: Is a directory"),
    "empty file": (["--prompt=", "--prompt_file={folder}/empty.txt"], "holds no prompt; write one"),
    "not UTF-8": (["--prompt=", "--prompt_file={folder}/latin.txt"], "latin.txt is no UTF-8 text"),
    "empty geneval": (["--prompt=", "--geneval={folder}/empty.txt"], "line 2 of {folder}/empty"),
    "bad line": (["--prompt=", "--geneval={folder}/bad_line.txt"], "line 3 of {folder}/bad_line"),
    "no prompt": (["--prompt=", "--geneval={folder}/no_prompt.txt"], "line 2 of {folder}/no_prom"),
    "blank": (["--prompt=", "--geneval={folder}/blank_prompt.txt"], "line 1 of {folder}/blank"),
    "no object": (["--prompt=", "--geneval={folder}/no_object.txt"], 'has no "prompt"'),
    "sampler": (["--sampler=dpm"], "unknown sampler 'dpm'"),
    "steps": (["--steps=0"], "timestep spacing '0' is not understood"),
    "one step": (["--steps=1"], "timestep spacing '1' keeps 1 step"),
    "words as steps": (["--steps=many"], "timestep spacing 'many' is not understood"),
    "guidance": (["--guidance=nan"], "cfg_scale is nan; it must be a finite number"),
    "seed": (["--seed=-1"], "seed -1 is not in 0..4294967295"),
    "dtype": (["--dtype=float16"], "unknown dtype 'float16'; did you mean 'bfloat16'?"),
    "mask": (["--null_mask=both"], "unknown null mask 'both' (known: own, prompt)"),
    "count": (["--num_images=0"], "num_images is 0; it must be an integer of at least 1"),
    "batch": (["--batch_size=0"], "batch_size is 0; it must be an integer of at least 1"),
    "length": (["--max_length=31"], "--max_length 31 is more than the 30 tokens of"),
    "negative length": (["--max_length=-1"], "max_length is -1; it must be at least 0"),
    "negative prompt": (["--negative_prompt=x", "--guidance=1"], "--cfg_scale 1 is no guidance"),
    "suffix": (["--out={folder}/image"], "image is no .png; one --prompt makes a PNG file"),
    "folder as out": (["--out={folder}/x.png"], "x.png is a folder; give the name of a PNG in it"),
    "file as out": (
        ["--prompt=", "--prompt_file={folder}/good.txt", "--out={folder}/good.txt"],
        "good.txt is a file; many prompts need a folder",
    ),
    "below a file": (["--out={folder}/good.txt/i.png"], "good.txt is a file, not a folder"),
    "bucket": (["--out=gs://bucket/i.png"], "is no path of a mounted file system"),
    "overwrite": (
        ["--prompt=", "--prompt_file={folder}/good.txt", "--overwrite"],
        "--overwrite replaces the PNG of one --prompt; remove a folder yourself",
    ),
}


def say_of(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> str:
    """Runs the door in this process and returns its one line."""

    def load(*given: Any) -> None:
        raise AssertionError("a network is loaded")

    for phase in ("encode_prompts", "draw_batches", "decode_batches"):
        monkeypatch.setattr(job, phase, load)
    monkeypatch.setattr(sys, "argv", ["lit_jax", "generate", *flags])
    with pytest.raises(SystemExit) as end:
        door.main()
    assert isinstance(end.value.code, str)  # printed on stderr, exit status 1
    assert end.value.code.startswith("error: ") and "\n" not in end.value.code
    return end.value.code


def flags_of(places: dict[str, str], out: Path) -> list[str]:
    networks = [f"--{name}={places[name]}" for name in ("model", "text_encoder", "vae")]
    return [*networks, f"--prompt={PROMPTS[0]}", f"--out={out}"]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, str], tmp_path: Path, case: str
) -> None:
    flags, named = REFUSED[case]
    (Path(places["folder"]) / "x.png").mkdir(exist_ok=True)
    before = sorted(Path(places["folder"]).rglob("*"))
    # The last one of two equal flags counts.
    required = flags_of(places, tmp_path / "i.png")
    line = say_of(monkeypatch, [*required, *(flag.format(**places) for flag in flags)])
    assert named.format(**places) in line
    assert list(tmp_path.iterdir()) == []
    assert sorted(Path(places["folder"]).rglob("*")) == before


@pytest.mark.parametrize("case", ["size", "empty file", "channels"])
def test_a_real_program_says_one_line(places: dict[str, str], tmp_path: Path, case: str) -> None:
    flags, named = REFUSED[case]
    required = flags_of(places, tmp_path / "i.png")
    program = tiny_runs.start(["generate", *required, *(flag.format(**places) for flag in flags)])
    output, errors = program.communicate(timeout=120)
    assert program.returncode == 1 and output == b""
    assert errors.count(b"\n") == 1 and named in errors.decode()


# --- networks that fit, but are not those the model was trained with ---


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A model that says which VAE and text encoder it belongs to."""
    folders = generate_cases.save_all(tmp_path_factory.mktemp("recorded"))
    content = json.loads((folders.model / CONFIG).read_text())
    content["vae"] = vars(vae_identity(folders.vae))
    content["text_encoder"] = vars(text_encoder_identity(folders.text_encoder))
    (folders.model / CONFIG).write_text(json.dumps(content))
    return folders


def stopped(monkeypatch: pytest.MonkeyPatch, config: GenerateConfig) -> list[str]:
    """What a job says until it would load its first network."""

    def stop(*given: Any) -> None:
        raise InterruptedError

    said: list[str] = []
    monkeypatch.setattr(job, "draw", stop)
    with pytest.raises(InterruptedError):
        job.generate(config, said.append)
    return said


def test_the_recorded_networks(
    monkeypatch: pytest.MonkeyPatch, recorded: Folders, tmp_path: Path
) -> None:
    said = stopped(monkeypatch, config_for(recorded, tmp_path / "i.png"))
    assert not any("does not say" in line for line in said)


def test_another_vae(recorded: Folders, tmp_path: Path) -> None:
    other = generate_cases.save_vae(tmp_path / "other", scaling_factor=0.5)
    config = config_for(recorded, tmp_path / "out" / "i.png", vae=str(other))
    with pytest.raises(ValueError, match="the latents of .*pixart belong to the VAE vae"):
        job.generate(config, lambda _: None)
    assert not (tmp_path / "out").exists()


def test_another_text_encoder(recorded: Folders, tmp_path: Path) -> None:
    other = write_text_encoder(tmp_path / "other", seed=3)
    config = config_for(recorded, tmp_path / "out" / "i.png", text_encoder=str(other))
    with pytest.raises(ValueError, match="the captions of .*pixart belong to the text encoder t5"):
        job.generate(config, lambda _: None)
    assert not (tmp_path / "out").exists()


# --- outputs that are there already ---


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey pictures, in no time."""

    def grey(images: Any, batches: list[int], *given: Any) -> Any:
        side = images.plan.size
        for batch in batches:
            yield batch, np.full((len(images.members(batch)), *side, 3), 128, np.uint8)

    monkeypatch.setattr(job, "encode_prompts", lambda *given: None)
    monkeypatch.setattr(job, "draw_batches", lambda *given: None)
    monkeypatch.setattr(job, "decode_batches", grey)


@pytest.mark.usefixtures("no_drawing")
def test_a_picture_of_another_request(recorded: Folders, tmp_path: Path) -> None:
    out = tmp_path / "i.png"
    job.generate(config_for(recorded, out), lambda _: None)
    before = out.read_bytes()
    refused = "i.png belongs to another request: protocol.seed is 0, asked for is 1; choose anoth"
    with pytest.raises(ValueError, match=refused):
        job.generate(config_for(recorded, out, seed=1), lambda _: None)
    with pytest.raises(ValueError, match="prompt is a photo of a red circle, asked for is a photo"):
        job.generate(config_for(recorded, out, prompt=PROMPTS[1]), lambda _: None)
    assert out.read_bytes() == before
    job.generate(config_for(recorded, out, seed=1, overwrite=True), lambda _: None)
    with Image.open(out) as image:
        assert json.loads(image.text["settings"])["protocol"]["seed"] == 1  # type: ignore[attr-defined]
    # The same networks in another place are the same request.
    moved = Folders(recorded.model.rename(tmp_path / "moved"), recorded.text_encoder, recorded.vae)
    said: list[str] = []
    job.generate(config_for(moved, out, seed=1), said.append)
    moved.model.rename(recorded.model)
    assert said[-1].startswith("nothing to do")


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_picture_of_somebody_else(
    recorded: Folders, tmp_path: Path, content: bytes | None
) -> None:
    out = tmp_path / "i.png"
    if content is None:
        Image.new("RGB", (4, 4)).save(out)
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="it records no settings; .* or --overwrite it"):
        job.generate(config_for(recorded, out), lambda _: None)
    assert out.read_bytes() == before
    job.generate(config_for(recorded, out, overwrite=True), lambda _: None)
    assert out.read_bytes() != before


@pytest.mark.usefixtures("no_drawing")
def test_a_folder_of_another_request(recorded: Folders, tmp_path: Path) -> None:
    out, prompts = tmp_path / "many", prompt_file(tmp_path / "p.txt", PROMPTS[:2])
    config = config_for(recorded, out, prompt_file=prompts)
    job.generate(config, lambda _: None)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    asked: dict[str, tuple[dict[str, Any], str]] = {
        "prompts": ({"prompt_file": prompt_file(tmp_path / "q.txt", PROMPTS[1:3])}, "prompts.sha2"),
        "count": ({"prompt_file": prompts, "num_images": 2}, "num_images is 1, asked for is 2"),
        "size": ({"prompt_file": prompts, "size": (16, 32)}, "size is"),
        "layout": ({"geneval": geneval_file(tmp_path / "g.jsonl", PROMPTS[:2])}, "layout is numb"),
    }
    for changes, named in asked.values():
        with pytest.raises(ValueError, match=f"many belongs to another request: .*{named}"):
            job.generate(config_for(recorded, out, **changes), lambda _: None)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_of_somebody_else(recorded: Folders, tmp_path: Path) -> None:
    prompts = prompt_file(tmp_path / "p.txt")
    out = tmp_path / "photos"
    out.mkdir()
    (out / "00000.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds 00000.png and no request.json; choose"):
        job.generate(config_for(recorded, out, prompt_file=prompts), lambda _: None)
    assert [path.name for path in out.iterdir()] == ["00000.png"]


def test_no_room(recorded: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("lit_jax.runs.requests.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="for images and unfinished work, 1e-06 GB are free"):
        job.generate(config_for(recorded, tmp_path / "i.png"), lambda _: None)
    assert list(tmp_path.iterdir()) == []
