"""Every slip on the command line ends in one line on stderr, and in nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from demo.digits import dataset as digits
from support import tiny_runs
from support.command_line import SCRATCH, refusal
from support.generate_cases import save_pixart, save_vae

# Data come before models among the checks of training.
DATA = "--config.data.data_dir={data}"


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
        "data": path / "data",
    }
    digits.prepare(folders["data"])
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
    "teacher": (
        ["--config=configs/digits_lit.py", DATA, "--config.distill.teacher=no"],
        "no is not a model folder",
    ),
    "source": ([SCRATCH, DATA, "--config.inherit.source=no"], "no is not a model folder"),
    "unequal teacher": (
        [SCRATCH, DATA, "--config.distill.teacher={big}"],
        "has image_size=(16, 16), the student (8, 8)",
    ),
    "unequal source": ([SCRATCH, DATA, "--config.inherit.source={wide}"], "cannot be inherited:"),
    "workdir": ([SCRATCH, DATA, "--workdir={run}"], "holds a run of another model: "),
    "model folder": (
        [SCRATCH, DATA, "--workdir={wide}"],
        "is a model folder; choose another workdir",
    ),
    "model": ([SCRATCH, "--config.model.name=LiTT"], "unknown model 'LiTT'; did you mean 'LiT'"),
}
SAMPLE: dict[str, tuple[list[str], str]] = {
    "missing": (["--model=nowhere"], "nowhere is not a model folder or training workdir"),
    "no model": (["--model="], "--model is empty; see sample --help"),
    "labels": (["--labels=3,10"], "labels [10] are not in 0..9"),
    "label": (["--labels=3,x"], "--labels '3,x': invalid literal"),
    "spaces": (["--labels", "3,", "4"], "'4' belongs to no flag; write --flag VALUE, lists as 1,2"),
    "sampler": (["--sampler=dpm"], "unknown sampler 'dpm'"),
    "interval": (["--cfg_interval=100"], "--cfg_interval '100' is not of the form LOW,HIGH"),
    "letters": (["--cfg_interval=a,b"], "--cfg_interval 'a,b': could not convert string to float"),
    "empty interval": (["--cfg_scale=2", "--cfg_interval=9,1"], "interval (9.0, 1.0) is empty"),
    "channels": (["--cfg_channels=two"], "unknown guidance channels 'two'"),
    "steps": (["--steps=abc"], "abc"),
    "count": (["--num_samples=0"], "num_samples is 0; it must be an integer of at least 1"),
    "number": (["--num_samples=x"], "--num_samples=x"),
    "policy": (["--label_policy=balance"], "unknown label policy 'balance'; did you mean"),
    "contradiction": (["--labels=3", "--label_policy=uniform"], "contradicts; give one of the two"),
    "captions": (
        ["--model={pixart}"],
        "holds a PixArt; a denoiser on class labels such as a DiT (for captions: `generate`)",
    ),
    "another network": (
        ["--model={vae}"],
        "holds an AutoencoderKL; a denoiser on class labels such as a DiT",
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
    "another model": (["--config.vae={model}"], "holds a DiT; a VAE (AutoencoderKL) is needed"),
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

SELF_GENERATE: dict[str, tuple[list[str], str]] = {
    "key": (["--config.num_sampels=3"], 'Did you mean "num_samples"'),
    "argument": (["--config=configs/self_generate.py:imagenet"], "'imagenet' is not one of"),
    "count": (["--config.num_samples=0"], "num_samples is 0; it must be an integer of at least 1"),
    "model": (["--config.model=nowhere"], "nowhere is not a model folder"),
    "another network": (["--config.model={vae}"], "a denoiser such as a DiT is needed"),
    "prompts": (["--config.model={pixart}", "--config.vae={vae}"], "with one prompt per line"),
}

COST: dict[str, tuple[list[str], str]] = {
    "model": (["--model=DiTT-S/2"], "unknown model 'DiTT-S/2'; did you mean 'DiT-S/2'"),
    "no model": (["--model=,"], "--model is empty; see cost --help"),
    "another network": (["--model={vae}"], "a denoiser such as a DiT is needed"),
    "resolutions": (["--resolutions=256,x"], "--resolutions '256,x': invalid literal"),
    "patches": (["--resolutions=256,264"], "resolution 264 is not a multiple of 16, vae_factor 8"),
    "factor": (["--vae_factor=3"], "--resolutions has 256; it must be a multiple of vae_factor 3"),
    "dtype": (["--dtype=float16"], "unknown dtype 'float16'; did you mean 'bfloat16'?"),
    "out": (
        ["--out={model}"],
        "holds config.json, params and no request.json; choose another --out, or remove it",
    ),
}


@pytest.mark.parametrize("case", TRAIN)
def test_train_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = TRAIN[case]
    arguments = [argument.format(**models) for argument in arguments]
    before = sorted(models["model"].parent.rglob("*"))
    # The last one of two equal flags counts.
    flags = [f"--workdir={tmp_path / 'run'}", *arguments]
    assert named in refusal(monkeypatch, "train", flags)
    assert list(tmp_path.iterdir()) == []
    assert sorted(models["model"].parent.rglob("*")) == before


@pytest.mark.parametrize("case", SAMPLE)
def test_sample_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = SAMPLE[case]
    required = [f"--model={models['model']}", f"--out={tmp_path / 's'}", "--num_samples=2"]
    arguments = [argument.format(**models) for argument in arguments]
    assert named in refusal(monkeypatch, "sample", [*required, *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", SELF_GENERATE)
def test_self_generate_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = SELF_GENERATE[case]
    arguments = [argument.format(**models) for argument in arguments]
    flags = ["--config=configs/self_generate.py:digits", f"--out={tmp_path / 'out'}", *arguments]
    assert named in refusal(monkeypatch, "self_generate", flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ENCODE)
def test_encode_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = ENCODE[case]
    arguments = [argument.format(**models) for argument in arguments]
    flags = ["--config=configs/encode_folder.py", f"--out={tmp_path / 'out'}", *arguments]
    assert named in refusal(monkeypatch, "encode", flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", COST)
def test_cost_refuses(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    arguments, named = COST[case]
    flags = ["--model=DiT-S/2", f"--out={tmp_path / 'out'}", "--compile_up_to=0"]
    flags += ["--resolutions=256", *(argument.format(**models) for argument in arguments)]
    assert named in refusal(monkeypatch, "cost", flags)
    assert list(tmp_path.iterdir()) == []


def test_existing_samples_are_kept(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "sample.json").write_text("{}")
    flags = [f"--model={models['model']}", f"--out={tmp_path}", "--num_samples=2"]
    remedy = "holds sample.json and no request.json; choose another --out, or remove it"
    assert remedy in refusal(monkeypatch, "sample", flags)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


@pytest.mark.parametrize("case", EVALUATE)
def test_evaluate_refuses(monkeypatch: pytest.MonkeyPatch, case: str, tmp_path: Path) -> None:
    arguments, named = EVALUATE[case]
    flags = ["--samples=s", "--reference=r", "--inception=i", f"--out={tmp_path / 'm.json'}"]
    assert named in refusal(monkeypatch, "evaluate", [*flags, *arguments])
    assert list(tmp_path.iterdir()) == []
