"""Flags reach the command as a configuration; without them it has its own defaults."""

from __future__ import annotations

from typing import Any

import pytest

from lit_jax.commands.cost import job as cost
from lit_jax.commands.encode import job as encode
from lit_jax.commands.evaluate import job as evaluate
from lit_jax.commands.generate import job as generate
from lit_jax.commands.sample import job as sample
from lit_jax.commands.self_generate import job as self_generate
from lit_jax.commands.train import job as train
from lit_jax.config.cost import CostConfig
from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig
from lit_jax.config.generate import GenerateConfig
from lit_jax.config.protocol import CAPTIONS, LABELS, Protocol
from lit_jax.config.sample import SampleConfig
from support.command_line import SCRATCH, refusal, run

MODULES = {
    "cost": cost,
    "encode": encode,
    "evaluate": evaluate,
    "generate": generate,
    "sample": sample,
    "self_generate": self_generate,
    "train": train,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of the commands, which are called but not run."""
    made: list[Any] = []
    for name, module in MODULES.items():
        monkeypatch.setattr(module, name, lambda *given: made.append(given))
    return made


def test_sample(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    flags = "--model=m --out=o --num_samples=7 --sampler=ddim --steps=ddim9 --cfg_scale=2.5"
    flags += " --cfg_channels=all --cfg_interval=5,70 --labels=3,1 --batch_size=6 --seed=4"
    flags += " --label_policy=uniform --vae=v --save_latents --dtype=bfloat16 --shard_size=9"
    flags += " --decode_batch_size=2 --sequence=2 --window_size=6 --down_factor=3"
    run(monkeypatch, "sample", *flags.split())
    expected = SampleConfig(
        model="m",
        out="o",
        num_samples=7,
        protocol=Protocol("ddim", "ddim9", 2.5, "all", (5.0, 70.0), 4),
        labels=(3, 1),
        label_policy="uniform",
        vae="v",
        save_latents=True,
        dtype="bfloat16",
        window_size=6,
        down_factor=3,
        batch_size=6,
        decode_batch_size=2,
        sequence=2,
        shard_size=9,
    )
    assert calls.pop() == (expected,)
    run(monkeypatch, "sample", *flags.split()[:3])
    assert calls.pop() == (SampleConfig("m", "o", 7),)
    assert SampleConfig("m", "o", 7).protocol == LABELS


@pytest.mark.parametrize("name", ["cfg_scale", "guidance"])
def test_both_names_of_the_guidance(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any], name: str
) -> None:
    run(monkeypatch, "sample", "--model=m", "--out=o", "--num_samples=7", f"--{name}=2.5")
    assert calls.pop() == (SampleConfig("m", "o", 7, Protocol(cfg_scale=2.5)),)


def test_commands_with_a_configuration_file(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any]
) -> None:
    changes = ["--config.seed=9", "--config.optimizer.b1=0.5"]
    run(monkeypatch, "train", SCRATCH, "--workdir=w", *changes)
    config, workdir = calls.pop()
    assert (workdir, config.seed, config.optimizer.b1, config.total_steps) == ("w", 9, 0.5, 400)

    flags = "--config=configs/encode_imagenet.py:512 --out=o --config.source.split=validation"
    run(monkeypatch, "encode", *flags.split())
    config, out = calls.pop()
    assert (out, config.resolution, config.source.split) == ("o", 512, "validation")

    flags = "--config=configs/self_generate.py:t2i --out=o --config.prompt_file=p"
    run(monkeypatch, "self_generate", *flags.split())
    config, out = calls.pop()
    assert (out, config.prompt_file, config.cfg_scale, config.steps) == ("o", "p", 4.5, "20")


def test_evaluate(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    required = "--samples=s --reference=r --inception=i --out=o"
    run(monkeypatch, "evaluate", *required.split())
    expected = EvaluateConfig(samples="s", reference=ReferenceConfig("r"), inception="i", out="o")
    assert calls.pop() == (expected, None)

    flags = "--model=m --reference=tfds:a:b --inception=i --out=o --reference_data_dir=d"
    flags += " --resolution=64 --reference_images=9 --cache_dir=c --is_splits=4"
    flags += " --inception_batch_size=7 --num_samples=5 --cfg_scale=2.5 --batch_size=3 --vae=v"
    run(monkeypatch, "evaluate", *flags.split())
    config, draw = calls.pop()
    assert config == EvaluateConfig(
        model="m",
        reference=ReferenceConfig("tfds:a:b", "d", 64, 9, "c"),
        inception="i",
        out="o",
        is_splits=4,
        inception_batch_size=7,
    )
    draw("folder")
    drawn = SampleConfig("m", "folder", 5, Protocol(cfg_scale=2.5), vae="v", batch_size=3)
    assert calls.pop() == (drawn,)
    # Without --num_samples as many as the published numbers have.
    required = "--model=m --reference=r --inception=i --out=o"
    run(monkeypatch, "evaluate", *required.split())
    calls.pop()[1]("folder")
    assert calls.pop() == (SampleConfig("m", "folder", 50_000),)


def test_self_test(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    run(monkeypatch, "evaluate", "--self_test")
    assert calls.pop() == (EvaluateConfig(self_test=True), None)
    flags = "--self_test --reference=r --inception=i --inception_batch_size=8"
    run(monkeypatch, "evaluate", *flags.split())
    expected = EvaluateConfig(
        reference=ReferenceConfig("r"), inception="i", inception_batch_size=8, self_test=True
    )
    assert calls.pop() == (expected, None)
    arguments = ["--self_test", "--reference=r"]
    assert "--inception is missing" in refusal(monkeypatch, "evaluate", arguments)


def test_cost(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    run(monkeypatch, "cost", "--model=DiT-S/2", "--out=o")
    assert calls.pop() == (CostConfig(("DiT-S/2",), "o"),)
    flags = ["--model=m, CLEAR-S/2 window_size=4", "--out=o", "--resolutions=64,32", "--dtype=d"]
    flags += ["--vae_factor=4", "--compile_up_to=32", "--batch_size=3"]
    run(monkeypatch, "cost", *flags)
    models = ("m", "CLEAR-S/2 window_size=4")
    assert calls.pop() == (CostConfig(models, "o", (32, 64), 4, 32, 3, "d"),)


def test_generate(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    required = ["--model=m", "--text_encoder=t", "--vae=v", "--out=o.png", "--prompt=a b, c"]
    run(monkeypatch, "generate", *required)
    expected = GenerateConfig("m", "t", "v", "o.png", prompt="a b, c")
    assert calls.pop() == (expected,) and expected.protocol == CAPTIONS

    flags = "--negative_prompt=n --num_images=2 --steps=9 --guidance=3.5 --sampler=ddim --seed=4"
    flags += " --cfg_channels=three --cfg_interval=5,70"
    flags += " --null_mask=own --dtype=bfloat16 --tile --batch_size=6 --max_length=70 --overwrite"
    flags += " --window_size=7 --down_factor=3"
    run(monkeypatch, "generate", *required, "--size=768x1344", *flags.split())
    expected = GenerateConfig(
        *("m", "t", "v", "o.png"),
        prompt="a b, c",
        negative_prompt="n",
        num_images=2,
        size=(768, 1344),
        protocol=Protocol("ddim", "9", 3.5, "three", (5.0, 70.0), 4),
        null_mask="own",
        dtype="bfloat16",
        window_size=7,
        down_factor=3,
        max_length=70,
        tile=True,
        batch_size=6,
        overwrite=True,
    )
    assert calls.pop() == (expected,)
    for source in ("prompt_file", "geneval"):
        run(monkeypatch, "generate", *required[:4], f"--{source}=f", "--aspect_ratio=16:9")
        named: dict[str, Any] = {source: "f", "aspect_ratio": "16:9"}
        assert calls.pop() == (GenerateConfig("m", "t", "v", "o.png", **named),)
