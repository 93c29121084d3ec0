"""Folders of many prompts: GenEval's layout, kills, several hosts."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from lit_jax.commands.generate.job import generate
from lit_jax.config.generate import GenerateConfig
from lit_jax.sampling.prompts import read_prompts
from support import generate_cases, tiny_runs
from support.generate_cases import PROMPTS, Folders, config_for, geneval_file, pixels
from support.kills import contents, survives_kills

SEED = 11
COUNT, IMAGES = 5, 3  # prompts, and images of each


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return generate_cases.save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    return geneval_file(path, PROMPTS[:COUNT])


def command(folders: Folders, metadata: str, out: Path) -> list[str]:
    flags = [*folders.flags(), f"--geneval={metadata}", f"--out={out}", f"--num_images={IMAGES}"]
    return ["generate", *flags, "--steps=3", "--batch_size=4"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, folders: Folders, metadata: str) -> Path:
    out = tmp_path_factory.mktemp("one") / "images"
    output = tiny_runs.run(command(folders, metadata, out))
    assert "15 images of 16 x 16" in output and "from 5 prompts" in output
    return out


def scored(out: Path) -> dict[str, list[str]]:
    """What GenEval's scoring program sees: folders of digits only, their metadata, and every image
    of samples/ whose name is digits.png. Prompt -> names of its images."""
    found = {}
    for folder in sorted(out.iterdir()):
        if not folder.is_dir() or not folder.name.isdigit():
            continue
        metadata = json.loads((folder / "metadata.jsonl").read_text())
        names = sorted(path.name for path in (folder / "samples").iterdir())
        found[metadata["prompt"]] = [name for name in names if re.match(r"\d+\.png", name)]
    return found


def test_the_layout_that_geneval_scores(one_process: Path, metadata: str) -> None:
    names = ["0000.png", "0001.png", "0002.png"]
    assert scored(one_process) == {prompt: names for prompt in PROMPTS[:COUNT]}
    lines = Path(metadata).read_text().splitlines()
    for number, line in enumerate(lines):
        folder = one_process / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(line)
        assert pixels(folder / "samples" / "0000.png").shape == (16, 16, 3)
        assert pixels(folder / "grid.png").shape[0] > 32
    others = sorted(path.name for path in one_process.iterdir() if not path.name.isdigit())
    assert others == ["generate.json", "request.json"]
    record = json.loads((one_process / "generate.json").read_text())
    assert (record["network_evaluations"], record["layout"]) == (6, "geneval")
    assert record["prompts"]["count"] == COUNT and record["devices"] == "1 x cpu"


def test_a_file_of_prompts_draws_the_same(
    one_process: Path, folders: Folders, tmp_path: Path
) -> None:
    """Comments, blank lines, a byte order mark and ends of lines as on Windows are no prompts."""
    path = tmp_path / "p.txt"
    text = f"\ufeff# a comment\r\n\r\n  {PROMPTS[2]} \r\n{PROMPTS[0]}\r\n"
    path.write_bytes(text.encode())
    generate(config_for(folders, tmp_path / "many", prompt_file=str(path)), lambda _: None)
    images = sorted(p.name for p in (tmp_path / "many").glob("*.png"))
    assert images == ["00000.png", "00001.png"]
    for name, number in (("00000.png", 2), ("00001.png", 0)):
        same = one_process / f"{number:05d}" / "samples" / "0000.png"
        assert np.abs(pixels(tmp_path / "many" / name) - pixels(same)).max() <= 1


def test_two_hosts_equal_one(
    one_process: Path, folders: Folders, metadata: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = {"LIT_JAX_DISTRIBUTED": "1", "JAX_COORDINATOR_ADDRESS": address}
    arguments = command(folders, metadata, tmp_path / "two")
    programs = [
        tiny_runs.start(arguments, **cluster, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index))
        for index in range(2)
    ]
    outputs = [tiny_runs.finish(program) for program in programs]
    # Only the first one speaks.
    assert "wrote" in outputs[0] and "wrote" not in outputs[1] and "peak" not in outputs[1]
    assert contents(tmp_path / "two") == contents(one_process)


def job(config: GenerateConfig, name: str, out: Path) -> None:
    generate(dataclasses.replace(config, out=str(out / name)))


@pytest.mark.slow
def test_killed_at_any_moment(folders: Folders, metadata: str, tmp_path: Path) -> None:
    """Whatever is there already, what is left is drawn in the same batches."""
    config = config_for(folders, Path("out"), geneval=metadata, num_images=IMAGES)
    killed = functools.partial(job, config, "images")
    assert survives_kills(killed, tmp_path, kills=6, seed=SEED) >= 6


def test_one_prompt_killed(folders: Folders, tmp_path: Path) -> None:
    """It has no folder of its own, and leaves nothing beside the picture either."""
    config = config_for(folders, Path("i.png"), num_images=2)
    killed = functools.partial(job, config, "i.png")
    assert survives_kills(killed, tmp_path, kills=3, seed=SEED) >= 3
    assert sorted(contents(tmp_path / "whole")) == ["i.png", "i_0.png", "i_1.png"]


def test_a_finished_folder_is_left_alone(
    one_process: Path, folders: Folders, metadata: str
) -> None:
    before = contents(one_process)
    (one_process / "work" / "0123").mkdir(parents=True)  # a kill between the last two steps
    said: list[str] = []
    config = config_for(folders, one_process, geneval=metadata, num_images=IMAGES)
    generate(config, said.append)
    assert said[-1] == f"nothing to do: {one_process} holds 15 images of this request"
    assert contents(one_process) == before and not (one_process / "work").exists()


def test_what_is_lost_is_drawn_again(
    one_process: Path, folders: Folders, metadata: str, tmp_path: Path
) -> None:
    out = shutil.copytree(one_process, tmp_path / "g")
    before = contents(out)
    lost = ("00001/samples/0001.png", "00000/grid.png", "00002/metadata.jsonl")
    for name in lost:
        (out / name).unlink()
    config = config_for(folders, out, geneval=metadata, num_images=IMAGES)
    generate(config, lambda text: None)
    after = contents(out)
    # The record names the devices, which are others in this process.
    assert after.keys() == before.keys() and set(lost) <= after.keys()
    assert all(after[name] == before[name] for name in lost if not name.endswith(".png"))
    for name in lost:
        if name.endswith(".png"):
            assert np.abs(pixels(out / name) - pixels(one_process / name)).max() <= 1


def test_only_the_own_work_is_removed(folders: Folders, tmp_path: Path) -> None:
    stranger = tmp_path / ".i.png.work" / "mine.txt"
    stranger.parent.mkdir()
    stranger.write_text("kept")
    generate(config_for(folders, tmp_path / "i.png"), lambda text: None)
    assert sorted(contents(tmp_path)) == [".i.png.work/mine.txt", "i.png"]


def test_a_prompt_with_an_odd_line_separator(folders: Folders, tmp_path: Path) -> None:
    """U+2028 may stand in a JSON string, and ends no line."""
    path = tmp_path / "g.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\n\n{"prompt": " c "}', encoding="utf-8")
    prompts = read_prompts(config_for(folders, tmp_path / "out", geneval=str(path)))
    assert [prompt.text for prompt in prompts] == ["a\u2028b", "c"]
    assert prompts[1].images == ("00001/samples/0000.png",)
