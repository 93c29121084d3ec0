"""The encode job as real processes: killed, on several hosts, and on other numbers of devices."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

import numpy as np
import pytest

from lit_jax.commands.encode.job import encode
from lit_jax.config import EncodeConfig, SourceConfig, TextConfig
from lit_jax.data.latents.schema import read_schema
from support import encode_cases, tiny_runs
from support.encode_cases import SIZE, config_for, stored
from support.kills import contents, survives_kills
from support.text_encoder_cases import write_text_encoder

SEED = 20
KINDS = ("long.txt", "short.txt")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_cases.save_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """31 images with captions, four of them broken and one without: the last two are a shard (of 2)
    without examples."""
    root = encode_cases.save_captioned(tmp_path_factory.mktemp("images") / "train", count=27)
    for name in ("000a.png", "013a.png", "998.png", "999.png"):
        (root / name).write_bytes(b"broken" if name != "998.png" else b"")
        (root / name).with_suffix(".long.txt").write_text("a caption")
    return root


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("t5") / "tiny-t5")


def command(vae: Path, images: Path, text_encoder: Path, out: Path) -> list[str]:
    settings = {
        "vae": vae,
        "source.path": images,
        "source.captions": KINDS,
        "text.encoder": text_encoder,
        "text.max_length": 12,
        "text.batch_size": 2,
        "resolution": SIZE,
        "shard_size": 2,
        "device_batch_size": 2,
        "workers": 2,
        "max_skipped_fraction": 0.2,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["encode", "--config=configs/encode_folder.py:captions", f"--out={out}", *flags]


def text_config(vae: Path, images: Path, text_encoder: Path) -> EncodeConfig:
    """What `command` asks for."""
    return config_for(
        vae,
        images,
        source=SourceConfig(kind="folder", path=str(images), captions=KINDS),
        text=TextConfig(encoder=str(text_encoder), max_length=12, batch_size=2),
        mirrors=False,
        shard_size=2,
        max_skipped_fraction=0.2,
    )


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, vae: Path, images: Path, text_encoder: Path
) -> Path:
    out = tmp_path_factory.mktemp("one") / "latents"
    output = tiny_runs.run(command(vae, images, text_encoder, out))
    assert "16 shards, 16 to do" in output and "26 images" in output and "ETA" in output
    assert "captions were cut to 12 tokens" in output
    return out


def test_killed_at_any_moment(vae: Path, images: Path, text_encoder: Path, tmp_path: Path) -> None:
    config = text_config(vae, images, text_encoder)
    job = functools.partial(encode, config)
    assert survives_kills(job, tmp_path, kills=8, seed=SEED) >= 8


def test_two_hosts_equal_one(
    one_process: Path, vae: Path, images: Path, text_encoder: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = {"LIT_JAX_DISTRIBUTED": "1", "JAX_COORDINATOR_ADDRESS": address}
    arguments = command(vae, images, text_encoder, tmp_path / "two")
    programs = [
        tiny_runs.start(arguments, **cluster, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index))
        for index in range(2)
    ]
    outputs = [tiny_runs.finish(program) for program in programs]
    # Each does half of the shards; only the first one speaks of it.
    assert outputs[0].count("\nshard ") == 8
    assert "shard " not in outputs[1] and "wrote" not in outputs[1]
    assert contents(tmp_path / "two") == contents(one_process)


def test_one_device_equals_eight(
    one_process: Path, vae: Path, images: Path, text_encoder: Path, tmp_path: Path
) -> None:
    config = text_config(vae, images, text_encoder)
    encode(config, tmp_path / "eight", lambda _: None)
    assert read_schema(tmp_path / "eight") == read_schema(one_process)
    for found, wanted in zip(stored(tmp_path / "eight"), stored(one_process), strict=True):
        assert found["name"] == wanted["name"]
        np.testing.assert_allclose(found["moments"], wanted["moments"], rtol=1e-5, atol=1e-5)
        for kind in ("tokens_long", "tokens_short"):
            assert found[kind].shape == wanted[kind].shape
            np.testing.assert_allclose(found[kind], wanted[kind], rtol=1e-3, atol=1e-4)
