"""The door: every slip on the command line ends in one line on stderr, and in nothing else."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_jax import __main__ as door
from lit_jax.commands import flags as command_line
from support import tiny_runs
from support.generate_cases import save_pixart, save_vae

SCRATCH = "--config=configs/digits_lit.py:scratch"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("models")
    (path / "run").mkdir()
    folders = {
        "model": tiny_runs.save_model(path / "model"),
        "wide": tiny_runs.save_model(path / "wide", hidden_size=32),
        "big": tiny_runs.save_model(path / "big", input_size=16),
        "run": path / "run",
        "pixart": save_pixart(path / "pixart"),
        "vae": save_vae(path / "vae"),
    }
    shutil.copy(folders["wide"] / "config.json", folders["run"])
    return folders


# Case -> arguments, and what the line must say. {out} is a folder that must not appear.
TRAIN: dict[str, tuple[list[str], str]] = {
    "key": (
        [SCRATCH, "--config.optimizer.learningrate=1"],
        "error: --config has no key 'learningrate'"
        ' Did you mean "learning_rate" instead of "learningrate"?',
    ),
    "group": ([SCRATCH, "--config.optimzer.b1=1"], 'Did you mean "optimizer"'),
    "override": ([SCRATCH, "--config.model.overrides.dept=1"], 'Did you mean "depth"'),
    "below a number": ([SCRATCH, "--config.total_steps.x=1"], "total_steps.x"),
    "value": ([SCRATCH, "--config.total_steps=many"], "--config.total_steps=many: invalid literal"),
    "group as value": ([SCRATCH, "--config.optimizer=3"], "--config.optimizer=3"),
    "no value": (
        [SCRATCH, "--config.optimizer.b1"],
        "Missing value for flag --config.optimizer.b1",
    ),
    "argument": (
        ["--config=configs/digits_lit.py:scrtch"],
        "'scrtch' is not one of distilled, inherited, scratch",
    ),
    "superfluous argument": (["--config=configs/digits_teacher.py:S/2"], "digits_teacher.py:S/2"),
    "file": (["--config=configs/nothing.py"], "No such file or directory: 'configs/nothing.py'"),
    "file and key": (["--config=configs/nothing.py", "--config.seed=1"], "configs/nothing.py"),
    "no config": ([], "--config must have a value"),
    "flag": ([SCRATCH, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    "no flag": ([SCRATCH, "workdir"], "'workdir' belongs to no flag"),
    "batch": ([SCRATCH, "--config.batch_size=12"], "batch_size 12 is not divisible by 8 devices"),
    "accumulation": ([SCRATCH, "--config.optimizer.accumulation=3"], "by optimizer.accumulation 3"),
    "mesh": ([SCRATCH, "--config.mesh.fsdp=3"], "fsdp=3 does not divide 8 devices"),
    "data set": (
        ["--config=configs/dit_imagenet256.py:S/2"],
        "unknown data set 'imagenet256_latents'",
    ),
    "data": ([SCRATCH, "--config.data.data_dir=nowhere"], "not prepared in 'nowhere'; run `python"),
    "teacher": (["--config=configs/digits_lit.py", "--config.distill.teacher=no"], "no is not a"),
    "source": ([SCRATCH, "--config.inherit.source=no"], "no is not a model folder"),
    "unequal teacher": (
        [SCRATCH, "--config.distill.teacher={big}"],
        "has image_size=(16, 16), the student (8, 8)",
    ),
    "unequal source": ([SCRATCH, "--config.inherit.source={wide}"], "cannot be inherited:"),
    "workdir": ([SCRATCH, "--workdir={run}"], "holds a run of another model: "),
    "model folder": ([SCRATCH, "--workdir={wide}"], "is a model folder; choose another workdir"),
    "model": ([SCRATCH, "--config.model.name=LiTT"], "unknown model 'LiTT'; did you mean 'LiT'"),
}
SAMPLE: dict[str, tuple[list[str], str]] = {
    "missing": (["--model=nowhere"], "nowhere is not a model folder or training workdir"),
    "no model": (["--model="], "is not a model folder"),
    "labels": (["--labels=3,10"], "labels [10] are not in 0..9"),
    "label": (["--labels=3,x"], "--labels '3,x': invalid literal"),
    "spaces": (["--labels", "3,", "4"], "'4' belongs to no flag; write --flag VALUE, lists as 1,2"),
    "sampler": (["--sampler=dpm"], "unknown sampler 'dpm'"),
    "interval": (["--cfg_interval=100"], "--cfg_interval '100' is not of the form LOW,HIGH"),
    "letters": (["--cfg_interval=a,b"], "--cfg_interval 'a,b': could not convert string to float"),
    "empty interval": (["--cfg_scale=2", "--cfg_interval=9,1"], "interval (9.0, 1.0) is empty"),
    "channels": (["--cfg_channels=two"], "unknown guidance channels 'two'"),
    "steps": (["--steps=abc"], "abc"),
    "count": (["--num_samples=0"], "num_samples 0"),
    "number": (["--num_samples=x"], "--num_samples=x"),
    "policy": (["--label_policy=balance"], "unknown label policy 'balance'; did you mean"),
    "contradiction": (["--labels=3", "--label_policy=uniform"], "contradicts; give one of the two"),
    "captions": (["--model={pixart}"], "draws from captions; use `generate` instead"),
    "another network": (
        ["--model={vae}"],
        "holds a AutoencoderKL; a denoiser such as a DiT is needed",
    ),
    "vae of pixels": (["--vae=v"], "--vae v is given, but"),
    "dtype": (["--dtype=float16"], "unknown dtype 'float16'; did you mean 'bfloat16'?"),
}
ENCODE: dict[str, tuple[list[str], str]] = {
    "key": (["--config.source.pth=x"], 'Did you mean "path"'),
    "dtype": (["--config.dtype=float15"], "unknown dtype 'float15'; did you mean 'float1"),
    "precision": (["--config.precision=fast"], "unknown precision 'fast'"),
    "workers": (["--config.workers=0"], "workers is 0; it must be at least 1"),
    "fraction": (["--config.max_skipped_fraction=1"], "max_skipped_fraction is 1.0; it must be in"),
    "vae": (["--config.vae="], "vae is empty; give the model folder of an AutoencoderKL"),
    "no vae": (["--config.vae=nowhere"], "nowhere is not a model folder"),
    "another model": (["--config.vae={model}"], "holds a DiT; an AutoencoderKL is needed"),
    "kind": (["--config.source.captions=('txt',)"], "belong to source.kind 'folder' or 'tfds'"),
    "captions": (["--config.text.encoder=t5"], "text.encoder is t5, but there are no captions"),
    "tokens": (["--config.text.max_length=0"], "text.max_length is 0; it must be an integer"),
    "text dtype": (["--config.text.dtype=float8"], "unknown text.dtype 'float8'"),
    "buckets": (["--config.buckets=pixrt"], "unknown buckets 'pixrt'; did you mean 'pixart'?"),
    "another config": (
        ["--config=configs/digits_teacher.py"],
        "unknown key of config 'batch_size'; did you mean 'device_batch_size'",
    ),
}
# On top of samples, a reference, an Inception and an output that are never looked at.
EVALUATE: dict[str, tuple[list[str], str]] = {
    "samples": (["--samples="], "--samples '' and --model '': give exactly one of the two"),
    "both": (["--model=m"], "give exactly one of the two"),
    "reference": (["--reference="], "--reference is missing"),
    "inception": (["--inception="], "--inception is missing"),
    "out": (["--out="], "--out is missing"),
    "data set": (["--reference=tfds:a"], "'tfds:a' is not of the form tfds:NAME:SPLIT"),
    "data folder": (["--reference=tfds:a:b"], "needs --reference_data_dir"),
    "splits": (["--is_splits=0"], "is_splits is 0; it must be at least 1"),
    "sampling": (["--steps=50"], "--steps belongs to --model, whose samples are drawn"),
    "switch": (["--save_latents"], "--save_latents belongs to --model"),
    "count": (["--num_samples=50000"], "--num_samples belongs to --model"),
    "few": (
        ["--samples=", "--model=m", "--num_samples=9"],
        "--num_samples 9 cannot fill --is_splits 10",
    ),
    "self test": (["--self_test"], "--samples belongs to a real evaluation; leave it out"),
    "folder": ([], "i is not a model folder"),
    "latents only": (
        ["--samples=", "--model=m", "--num_samples=50", "--save_latents"],
        "--save_latents without --vae draws latents only",
    ),
}

COST: dict[str, tuple[list[str], str]] = {
    "model": (["--model=DiTT-S/2"], "unknown model 'DiTT-S/2'; did you mean 'DiT-S/2'"),
    "no model": (["--model=,"], "--model is empty; see cost --help"),
    "another network": (["--model={vae}"], "a denoiser such as a DiT is needed"),
    "resolutions": (["--resolutions=256,x"], "--resolutions '256,x': invalid literal"),
    "patches": (["--resolutions=256,264"], "resolution 264 is not a multiple of 16, vae_factor 8"),
    "factor": (["--vae_factor=3"], "--resolutions has 256; it must be a multiple of vae_factor 3"),
    "dtype": (["--dtype=float16"], "unknown dtype 'float16'; did you mean 'bfloat16'?"),
    "out": (["--out={model}"], "holds config.json, which is not of this job; choose another --out"),
}


def call(monkeypatch: pytest.MonkeyPatch, job: str, arguments: list[str]) -> str:
    """Runs the door in this process and returns its one line."""
    monkeypatch.chdir(tiny_runs.ROOT)
    monkeypatch.setattr(sys, "argv", ["lit_jax", job, *arguments])
    with pytest.raises(SystemExit) as end:
        door.main()
    assert isinstance(end.value.code, str)  # printed on stderr, exit status 1
    assert end.value.code.startswith("error: ") and "\n" not in end.value.code
    assert "Traceback" not in end.value.code
    return end.value.code


@pytest.mark.parametrize("case", TRAIN)
def test_train_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = TRAIN[case]
    arguments = [argument.format(**models) for argument in arguments]
    before = sorted(models["model"].parent.rglob("*"))
    # The last one of two equal flags counts.
    flags = [f"--workdir={tmp_path / 'run'}", *arguments]
    assert named in call(monkeypatch, "train", flags)
    assert list(tmp_path.iterdir()) == []
    assert sorted(models["model"].parent.rglob("*")) == before


@pytest.mark.parametrize("case", SAMPLE)
def test_sample_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = SAMPLE[case]
    required = [f"--model={models['model']}", f"--out={tmp_path / 's'}", "--num_samples=2"]
    arguments = [argument.format(**models) for argument in arguments]
    assert named in call(monkeypatch, "sample", [*required, *arguments])
    assert list(tmp_path.iterdir()) == []


SELF_GENERATE: dict[str, tuple[list[str], str]] = {
    "key": (["--config.num_sampels=3"], 'Did you mean "num_samples"'),
    "argument": (["--config=configs/self_generate.py:imagenet"], "'imagenet' is not one of"),
    "count": (["--config.num_samples=0"], "num_samples is 0; it must be an integer of at least 1"),
    "model": (["--config.model=nowhere"], "nowhere is not a model folder"),
    "another network": (["--config.model={vae}"], "a denoiser such as a DiT is needed"),
    "prompts": (["--config.model={pixart}", "--config.vae={vae}"], "with one prompt per line"),
}


@pytest.mark.parametrize("case", SELF_GENERATE)
def test_self_generate_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = SELF_GENERATE[case]
    arguments = [argument.format(**models) for argument in arguments]
    flags = ["--config=configs/self_generate.py:digits", f"--out={tmp_path / 'out'}", *arguments]
    assert named in call(monkeypatch, "self_generate", flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ENCODE)
def test_encode_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = ENCODE[case]
    arguments = [argument.format(**models) for argument in arguments]
    flags = ["--config=configs/encode_folder.py", f"--out={tmp_path / 'out'}", *arguments]
    assert named in call(monkeypatch, "encode", flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", COST)
def test_cost_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = COST[case]
    flags = ["--model=DiT-S/2", f"--out={tmp_path / 'out'}", "--compile_up_to=0"]
    flags += ["--resolutions=256", *(argument.format(**models) for argument in arguments)]
    assert named in call(monkeypatch, "cost", flags)
    assert list(tmp_path.iterdir()) == []


def test_existing_samples_are_kept(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "sample.json").write_text("{}")
    flags = [f"--model={models['model']}", f"--out={tmp_path}", "--num_samples=2"]
    assert "already holds samples; choose another --out" in call(monkeypatch, "sample", flags)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


@pytest.mark.parametrize("case", EVALUATE)
def test_evaluate_refuses(monkeypatch: pytest.MonkeyPatch, case: str, tmp_path: Path) -> None:
    arguments, named = EVALUATE[case]
    flags = ["--samples=s", "--reference=r", "--inception=i", f"--out={tmp_path / 'm.json'}"]
    assert named in call(monkeypatch, "evaluate", [*flags, *arguments])
    assert list(tmp_path.iterdir()) == []


def test_required_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for job, flags in command_line.JOB_FLAGS.items():
        named = [name for _, name, default, _ in flags if default is None]
        if job == "evaluate":  # which ones depends on --self_test
            named = ["reference"]
        assert any(f"--{name}" in call(monkeypatch, job, []) for name in named)
    assert door.JOBS.keys() == command_line.JOB_FLAGS.keys()


def test_unknown_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unknown job 'trian'; did you mean 'train'?" in call(monkeypatch, "trian", [])


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([job] for job in command_line.JOB_FLAGS)):
        monkeypatch.setattr(sys, "argv", ["lit_jax", *arguments, "--help"])
        with pytest.raises(SystemExit) as end:
            door.main()
        assert end.value.code is None
        text = capsys.readouterr().out
        assert text.startswith(door.USAGE)
        for job in arguments:
            shown = text.replace("--[no]", "--")  # a switch
            assert all(f"--{row[1]}" in shown for row in command_line.JOB_FLAGS[job])
    monkeypatch.setattr(sys, "argv", ["lit_jax"])
    with pytest.raises(SystemExit, match="python -m lit_jax train"):
        door.main()


def test_flags_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_jax.commands.encode import job as encode
    from lit_jax.commands.sample import job as sample
    from lit_jax.commands.self_generate import job as self_generate
    from lit_jax.commands.train import job as train

    drawn = sample.sample
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sample, "sample", lambda *given, **named: calls.append((*given, named)))
    monkeypatch.setattr(train, "train", lambda *given: calls.append(given))
    monkeypatch.chdir(tiny_runs.ROOT)
    flags = "--model=m --out=o --num_samples=7 --sampler=ddim --steps=ddim9 --cfg_scale=2.5"
    flags += " --cfg_channels=all --cfg_interval=5,70 --labels=3,1 --batch_size=6 --seed=4"
    flags += " --label_policy=uniform --vae=v --save_latents --dtype=bfloat16 --shard_size=9"
    flags += " --decode_batch_size=2 --sequence=2 --window_size=6 --down_factor=3"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "sample", *flags.split()])
    door.main()
    protocol = sample.Protocol("ddim", "ddim9", 2.5, "all", (5.0, 70.0), 4)
    named = {"label_policy": "uniform", "vae": "v", "save_latents": True, "dtype": "bfloat16"}
    named |= {"shard_size": 9, "decode_batch_size": 2, "sequence": 2}
    named |= {"window_size": 6, "down_factor": 3}
    assert calls.pop() == ("m", "o", 7, protocol, (3, 1), 6, named)

    monkeypatch.setattr(sys, "argv", ["lit_jax", "sample", *flags.split()[:3]])
    door.main()
    *given, named = calls.pop()
    assert given == ["m", "o", 7, sample.Protocol(), (), 64]
    # The defaults of the flags are those of the function.
    assert named == {name: inspect.signature(drawn).parameters[name].default for name in named}

    flags = f"{SCRATCH} --workdir=w --config.seed=9 --config.optimizer.b1=0.5"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "train", *flags.split()])
    door.main()
    config, workdir = calls.pop()
    assert (workdir, config.seed, config.optimizer.b1, config.total_steps) == ("w", 9, 0.5, 400)

    monkeypatch.setattr(encode, "encode", lambda *given: calls.append(given))
    flags = "--config=configs/encode_imagenet.py:512 --out=o --config.source.split=validation"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "encode", *flags.split()])
    door.main()
    config, out = calls.pop()
    assert (out, config.resolution, config.source.split) == ("o", 512, "validation")

    monkeypatch.setattr(self_generate, "self_generate", lambda *given: calls.append(given))
    flags = "--config=configs/self_generate.py:t2i --out=o --config.prompt_file=p"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "self_generate", *flags.split()])
    door.main()
    config, out = calls.pop()
    assert (out, config.prompt_file, config.cfg_scale, config.steps) == ("o", "p", 4.5, "20")


def test_flags_reach_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_jax.commands.evaluate import job as evaluate
    from lit_jax.commands.evaluate import self_test as evaluate_self_test
    from lit_jax.commands.sample import job as sample
    from lit_jax.config.evaluate import EvaluateConfig, ReferenceConfig

    calls: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: calls.append(given))
    monkeypatch.setattr(evaluate_self_test, "self_test", lambda *given: calls.append(given))
    monkeypatch.setattr(sample, "sample", lambda *given, **named: calls.append((given, named)))
    required = "--samples=s --reference=r --inception=i --out=o"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "evaluate", *required.split()])
    door.main()
    # The defaults of the flags are those of the configuration.
    expected = EvaluateConfig(ReferenceConfig("r"), samples="s", inception="i", out="o")
    assert calls.pop() == (expected, None)

    flags = "--model=m --reference=tfds:a:b --inception=i --out=o --reference_data_dir=d"
    flags += " --resolution=64 --reference_images=9 --cache_dir=c --is_splits=4"
    flags += " --inception_batch_size=7 --num_samples=5 --cfg_scale=2.5 --batch_size=3 --vae=v"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "evaluate", *flags.split()])
    door.main()
    config, draw = calls.pop()
    reference = ReferenceConfig("tfds:a:b", "d", 64, 9, "c")
    assert config == EvaluateConfig(reference, "", "m", "i", "o", 4, 7)
    draw("folder")
    (model, out, count, protocol, _, batch_size), named = calls.pop()
    assert (model, out, count, batch_size, named["vae"]) == ("m", "folder", 5, 3, "v")
    assert protocol == sample.Protocol(cfg_scale=2.5)

    monkeypatch.setattr(sys, "argv", ["lit_jax", "evaluate", "--self_test"])
    door.main()
    assert calls.pop() == ("", None, 64)
    flags = "--self_test --reference=r --inception=i --inception_batch_size=8"
    monkeypatch.setattr(sys, "argv", ["lit_jax", "evaluate", *flags.split()])
    door.main()
    assert calls.pop() == ("i", ReferenceConfig("r"), 8)
    assert "--inception is missing" in call(
        monkeypatch, "evaluate", ["--self_test", "--reference=r"]
    )


def test_flags_reach_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_jax.commands.cost import job as cost
    from lit_jax.config.cost import CostConfig

    calls: list[Any] = []
    monkeypatch.setattr(cost, "cost", calls.append)
    monkeypatch.setattr(sys, "argv", ["lit_jax", "cost", "--model=DiT-S/2", "--out=o"])
    door.main()
    # The defaults of the flags are those of the configuration.
    assert calls.pop() == CostConfig(("DiT-S/2",), "o")
    flags = ["--model=m, CLEAR-S/2 window_size=4", "--out=o", "--resolutions=64,32", "--dtype=d"]
    flags += ["--vae_factor=4", "--compile_up_to=32", "--batch_size=3"]
    monkeypatch.setattr(sys, "argv", ["lit_jax", "cost", *flags])
    door.main()
    assert calls.pop() == CostConfig(("m", "CLEAR-S/2 window_size=4"), "o", (32, 64), 4, 32, 3, "d")


def test_flags_reach_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_jax.commands.generate import job as generate
    from lit_jax.config.generate import GenerateConfig

    calls: list[Any] = []
    monkeypatch.setattr(generate, "generate", calls.append)
    required = ["--model=m", "--text_encoder=t", "--vae=v", "--out=o.png", "--prompt=a b, c"]
    monkeypatch.setattr(sys, "argv", ["lit_jax", "generate", *required])
    door.main()
    # The defaults of the flags are those of the configuration.
    assert calls.pop() == GenerateConfig("m", "t", "v", "o.png", prompt="a b, c")

    flags = "--negative_prompt=n --num_images=2 --steps=9 --guidance=3.5 --sampler=ddim --seed=4"
    flags += " --null_mask=own --dtype=bfloat16 --tile --batch_size=6 --max_length=70 --overwrite"
    flags += " --window_size=7 --down_factor=3"
    given = ["--size=768x1344", *flags.split()]
    monkeypatch.setattr(sys, "argv", ["lit_jax", "generate", *required, *given])
    door.main()
    assert calls.pop() == GenerateConfig(
        *("m", "t", "v", "o.png", "a b, c", "", "", "n", 2, (768, 1344), "", "9", 3.5, "ddim", 4),
        *("own", "bfloat16", True, 6, 70, True, 7, 3),
    )
    for source in ("prompt_file", "geneval"):
        flags = [*required[:4], f"--{source}=f", "--aspect_ratio=16:9"]
        monkeypatch.setattr(sys, "argv", ["lit_jax", "generate", *flags])
        door.main()
        expected = {source: "f", "aspect_ratio": "16:9"}
        assert calls.pop() == GenerateConfig("m", "t", "v", "o.png", **expected)  # type: ignore[arg-type]


def raising(error: Exception) -> Callable[[Any], None]:
    def job(given: Any) -> None:
        raise error

    return job


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ValueError from inside a library is no message to the user."""
    monkeypatch.setattr(sys, "argv", ["lit_jax", "train", SCRATCH, "--workdir=x"])
    monkeypatch.chdir(tiny_runs.ROOT)
    for error in (ValueError("from outside"), TypeError("bug")):
        monkeypatch.setitem(door.JOBS, "train", raising(error))
        with pytest.raises(type(error), match=str(error)):
            door.main()
    monkeypatch.setitem(door.JOBS, "train", raising(FloatingPointError("step 3")))
    with pytest.raises(SystemExit, match="error: step 3"):
        door.main()
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return {}.nothing\n")
    monkeypatch.setattr(sys, "argv", ["lit_jax", "train", f"--config={broken}", "--workdir=x"])
    with pytest.raises(AttributeError, match="nothing"):
        door.main()


def program(code: list[str], **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *code],
        cwd=tiny_runs.ROOT,
        env=tiny_runs.environment(8, **extra),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "flags, named",
    [
        ([SCRATCH, "--config.sed=1"], 'Did you mean "seed"'),
        (["--config=configs/nothing.py"], "No such file"),
        ([SCRATCH, "--config.batch_size=12"], "batch_size 12 is not divisible by 8 devices"),
    ],
)
def test_real_program_says_one_line(tmp_path: Path, flags: list[str], named: str) -> None:
    run = program(["-m", "lit_jax", "train", *flags, f"--workdir={tmp_path / 'run'}"])
    assert run.returncode == 1
    assert named in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_flags_are_checked_without_jax(tmp_path: Path) -> None:
    """That is what makes the answer quick."""
    code = (
        "import sys; from lit_jax import __main__ as door\n"
        f"sys.argv = ['lit_jax', 'train', '{SCRATCH}', '--workdir=x', '--config.sed=1']\n"
        "try: door.main()\n"
        "except SystemExit as end: assert 'seed' in end.code\n"
        "heavy = {'jax', 'flax', 'orbax', 'tensorflow', 'grain'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = program(["-c", code])
    assert run.returncode == 0, run.stderr


def test_cluster_that_is_not_there() -> None:
    """It must not be taken for a run on one host."""
    run = program(["-m", "lit_jax", "train", SCRATCH, "--workdir=x"], LIT_JAX_DISTRIBUTED="1")
    assert run.returncode == 1 and run.stderr.count("\n") == 1
    assert "no cluster to join" in run.stderr and "JAX_COORDINATOR_ADDRESS" in run.stderr
