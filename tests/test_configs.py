"""Every experiment file, with every argument it takes, is one that can be run; the published rows
and what is said about them fit the configs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from configs import common, reproduce
from configs.digits_roadmap import ROWS as MINIATURE
from configs.published import ROWS, TABLES
from lit_jax.config import EncodeConfig, PixArtConfig, TrainConfig, from_mapping
from lit_jax.diffusion.gaussian import create_process
from lit_jax.inheritance import POLICIES
from lit_jax.jobs.command_line import JOB_FLAGS
from lit_jax.models import zoo
from lit_jax.objectives import hybrid_objective
from lit_jax.training.optimizer import OPTIMIZERS, SCHEDULES, learning_rate

ROOT = Path(__file__).resolve().parents[1]

# Not experiments: what the files share, the published rows and the pages made from them.
NOT_EXPERIMENTS = {"common", "published", "reproduce"}

# File -> its arguments, () where it takes none. A new file needs a row.
IMAGENET = (
    "dit_imagenet256",
    "dit_imagenet512",
    "lit_imagenet256",
    "lit_imagenet512",
    "lit_ablation_attention",
    "lit_ablation_heads",
    "lit_ablation_inheritance",
    "lit_ablation_distillation",
)
DIGITS: dict[str, tuple[str, ...]] = {
    "digits_teacher": (),
    "digits_lit": ("distilled", "inherited", "scratch"),
    "digits_roadmap": ("source", *(name for name, row in MINIATURE.items() if not row.same_as)),
}
TEXT: dict[str, tuple[str, ...]] = {
    "lit_t2i": ("512", "1024"),
    "shapes_teacher": (),
    "shapes_lit": ("distilled", "inherited", "scratch"),
}
ENCODE: dict[str, tuple[str, ...]] = {
    "encode_folder": ("classes", "images", "captions"),
    "encode_imagenet": ("256", "512"),
    "encode_t2i": ("512", "1024"),
    "shapes_encode": (),
}


def module(name: str) -> Any:
    return importlib.import_module(f"configs.{name}")


ARGUMENTS: dict[str, tuple[str, ...]] = (
    DIGITS | TEXT | {name: module(name).ARGUMENTS for name in IMAGENET}
)
CASES = [(name, argument) for name, row in ARGUMENTS.items() for argument in row or (None,)]


def build(name: str, argument: str | None) -> TrainConfig:
    chosen = () if argument is None else (argument,)
    return from_mapping(TrainConfig, module(name).get_config(*chosen).to_dict())


def test_every_file_has_a_row() -> None:
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - NOT_EXPERIMENTS
    assert files == set(ARGUMENTS) | set(ENCODE)


@pytest.mark.parametrize("name, argument", CASES)
def test_config_builds(name: str, argument: str | None) -> None:
    config = build(name, argument)
    compute = {k: getattr(config.model, k) for k in ("dtype", "remat", "scan_unroll")}
    model = zoo.model_config(config.model.name, **config.model.overrides, **compute)
    assert config.optimizer.schedule in SCHEDULES
    assert float(learning_rate(config.optimizer, config.total_steps)(config.total_steps // 2)) > 0
    assert config.inherit.policy in POLICIES
    assert 0 < config.ema.decay < 1
    hybrid_objective(create_process(), config.distill)
    if name in IMAGENET:
        side = 64 if "512" in name else 32
        assert (model.image_size, model.in_channels, model.num_classes) == ((side, side), 4, 1000)
        assert config.data.name == f"imagenet{8 * side}_latents"
        assert config.data.vae == "models/sd-vae-ft-ema"
    elif name in TEXT:
        assert isinstance(model, PixArtConfig) and not config.data.flip
        assert config.optimizer.name in OPTIMIZERS
        assert config.data.caption_weights == (0.6, 0.4)
    else:
        assert (model.image_size, model.in_channels, model.num_classes) == ((8, 8), 1, 10)


@pytest.mark.parametrize("name", ENCODE)
def test_encode_config_builds(name: str) -> None:
    arguments = [(argument,) for argument in ENCODE[name]] or [()]
    built = [
        from_mapping(EncodeConfig, module(name).get_config(*chosen).to_dict())
        for chosen in arguments
    ]
    assert len(set(map(repr, built))) == len(built)


@pytest.mark.parametrize("name", [name for name, row in (ARGUMENTS | ENCODE).items() if row])
def test_wrong_argument_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="'nonsense' is not one of") as error:
        module(name).get_config("nonsense")
    assert all(argument in str(error.value) for argument in (ARGUMENTS | ENCODE)[name])
    module(name).get_config()  # without an argument there is a default


@pytest.mark.parametrize("name, row", ARGUMENTS.items())
def test_arguments_differ(name: str, row: tuple[str, ...]) -> None:
    assert len({repr(build(name, argument)) for argument in row}) == len(row)


@pytest.mark.parametrize("name", IMAGENET)
def test_recipe_of_the_papers(name: str) -> None:
    """DiT, section 4, and LiT, section 4 and its supplement: what every run shares."""
    for argument in ARGUMENTS[name]:
        config = build(name, argument)
        assert config.batch_size == (128 if name == "lit_imagenet512" else 256)
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 0.0)
        assert (config.optimizer.schedule, config.optimizer.warmup_steps) == ("constant", 0)
        assert (config.ema.decay, config.ema.warmup) == (0.9999, False)
        assert config.data.flip
        assert bool(config.inherit.source) == (
            name.startswith("lit_imagenet") or name[4:] in ("ablation_inheritance", DISTILLATION)
        )
        assert bool(config.distill.teacher) == (
            name.startswith("lit_imagenet") or name[4:] == DISTILLATION
        )


DISTILLATION = "ablation_distillation"


def test_students_of_the_whole_recipe() -> None:
    """LiT, section 4: heads, steps, teacher and weights."""
    heads = {}
    for size, steps in (("S/2", 400), ("B/2", 400), ("L/2", 400), ("XL/2", 400)):
        config = build("lit_imagenet256", size)
        assert config.total_steps == steps * 1000
        assert config.inherit.policy == "all_but_attention"
        assert config.distill.teacher == "models/DiT-XL-2"
        assert (config.distill.noise_weight, config.distill.variance_weight) == (0.5, 0.05)
        heads[size] = reproduce.student_config(config).num_heads
    assert heads == {"S/2": 2, "B/2": 3, "L/2": 4, "XL/2": 4}
    assert build("lit_imagenet256", "S/2").inherit.source == "models/DiT-S-2-800K"
    assert build("lit_imagenet256", "XL/2").inherit.source == "models/DiT-XL-2"
    assert build("lit_imagenet256", "XL/2-1.4M").total_steps == 1_400_000
    assert build("lit_imagenet256", "XL/2-100K").total_steps == 100_000
    large = build("lit_imagenet512", "XL/2")
    assert (large.total_steps, large.distill.noise_weight) == (700_000, 1.0)
    assert large.distill.teacher == large.inherit.source == "models/DiT-XL-2-512"


def test_stages_of_text_to_image() -> None:
    """LiT, section 4.3 and its supplement: two linear heads, kernel 5, and two stages; the second
    one goes on from the first, on latents that its own encode job makes."""
    for argument, steps, batch in (("512", 106_000, 8 * 48), ("1024", 155_000, 2 * 48)):
        config = build("lit_t2i", argument)
        assert (config.total_steps, config.batch_size) == (steps, batch)
        assert config.optimizer.learning_rate == 2e-5 and config.optimizer.clip_norm > 0
        assert (config.distill.noise_weight, config.distill.variance_weight) == (1.0, 0.05)
        model = zoo.model_config(config.model.name, **config.model.overrides)
        assert (model.mixer, model.num_heads, model.kernel_size) == ("linear", 2, 5)
        assert (model.depth, model.hidden_size, model.class_dropout_prob) == (28, 1152, 0.1)
        assert model.image_size == (int(argument) // 8,) * 2
        assert model.pe_interpolation == int(argument) / 512
        encoded = from_mapping(EncodeConfig, module("encode_t2i").get_config(argument).to_dict())
        assert encoded.text.max_length == model.model_max_length == 300
        assert encoded.resolution == int(argument) and encoded.vae == config.data.vae
        assert encoded.source.caption_kinds == ("long", "short")  # as the weights are given
        assert config.data.name == f"t2i{argument}_latents"
    assert "--out data/t2i512_latents" in module("encode_t2i").__doc__
    assert build("lit_t2i", "512").inherit.policy == "all_but_attention"
    second = build("lit_t2i", "1024").inherit
    assert (second.source, second.policy) == ("runs/lit_t2i_512", "all")


def test_ablations_change_what_they_are_about() -> None:
    focused = reproduce.student_config(build("lit_ablation_attention", "B/2-focused_gelu"))
    assert (focused.mixer, focused.kernel_fn, focused.num_heads) == ("focused", "gelu", 12)
    plain = reproduce.student_config(build("lit_ablation_attention", "S/2-relu"))
    assert (plain.mixer, plain.kernel_size, plain.num_heads) == ("linear", None, 6)
    assert reproduce.student_config(build("lit_ablation_heads", "XL/2-16")).num_heads == 16
    inherited = build("lit_ablation_inheritance", "600K+kv").inherit
    assert (inherited.source, inherited.policy) == ("models/DiT-S-2-600K", "kv")
    distilled = build("lit_ablation_distillation", "S/2-0.1-0").distill
    assert (distilled.teacher, distilled.noise_weight) == ("models/DiT-S-2-800K", 0.1)
    assert distilled.variance_weight == 0.0


def test_students_of_the_demo_differ_in_the_recipe_only() -> None:
    """Otherwise their comparison would say nothing."""
    rows: list[dict[str, Any]] = []
    for argument in ARGUMENTS["digits_lit"]:
        config = module("digits_lit").get_config(argument).to_dict()
        source, teacher = config["inherit"].pop("source"), config["distill"].pop("teacher")
        assert (bool(source), bool(teacher)) == (argument != "scratch", argument == "distilled")
        rows.append(config)
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.parametrize("table", (1, 2, 3, 4))
def test_rows_of_the_miniature_differ_in_what_their_table_is_about(table: int) -> None:
    about = {
        1: ("model.overrides.mixer", "model.overrides.kernel_size", "model.overrides.kernel_fn"),
        2: ("model.overrides.num_heads",),
        3: ("inherit.source", "inherit.policy"),
        4: ("distill.teacher", "distill.noise_weight", "distill.variance_weight"),
    }[table]
    rest = []
    for name, row in MINIATURE.items():
        if row.table == table:
            config = module("digits_roadmap").get_config(row.same_as or name)
            for key in about:
                group, _, last = key.rpartition(".")
                target = config
                for part in group.split("."):
                    target = target[part]
                del target[last]
            rest.append(config.to_dict())
    assert len(rest) > 4
    assert all(config == rest[0] for config in rest)


def test_every_argument_is_a_published_row() -> None:
    named = {row.config for row in ROWS}
    assert named == {f"{name}:{argument}" for name in IMAGENET for argument in ARGUMENTS[name]}
    assert {row.table for row in ROWS} == set(TABLES)
    for row in ROWS:
        scores = [float(score) for score in row.scores.split()]
        assert len(scores) in (0, 1, 4)
        assert all(0 < share < 1 for share in scores[2:])
    known = {(row.table, row.config, row.cfg): row.scores for row in ROWS}
    assert known["6", "lit_imagenet256:XL/2-1.4M", 1.5] == "2.32 265.20 .824 .574"
    assert known["1", "lit_ablation_attention:S/2-relu", 1.0].startswith("88.46")


def test_the_miniature_quotes_the_same_numbers() -> None:
    """FID of its rows are those of LiT-S/2 in the tables."""
    published = {row.scores.split()[0] for row in ROWS if row.scores}
    assert {f"{row.fid:.2f}" for row in MINIATURE.values()} <= published


@pytest.mark.parametrize("name", IMAGENET)
def test_docstring_holds_the_published_numbers_and_hours(name: str) -> None:
    table = reproduce.docstring_table(name)
    assert table in module(name).__doc__, f"paste: python -m configs.reproduce {name}"


def test_page_is_current() -> None:
    written = (ROOT / "docs" / "reproduce.md").read_text()
    remedy = "run: python -m configs.reproduce > docs/reproduce.md"
    assert written == reproduce.page(), remedy


def test_commands_of_the_page_use_flags_and_configs_that_exist() -> None:
    text = reproduce.INTRODUCTION.replace("\\\n", " ")
    commands = re.findall(r"python -m lit_jax (\w+)(.*)", text)
    assert {job for job, _ in commands} == {"encode", "train", "sample", "evaluate"}
    for job, rest in commands:
        known = {row[1] for row in JOB_FLAGS[job]}
        assert set(re.findall(r"--(\w+)", rest)) <= known
        for key in re.findall(r"--config\.([\w.]+)=", rest):
            assert key in ("total_steps", "ema.decay")
    for file, argument in re.findall(r"(\w+)\.py:([\w/.+-]+)", text):
        assert argument in (ARGUMENTS | ENCODE)[file]


def test_cost_of_the_largest_run() -> None:
    """DiT-XL/2 takes 118.64 GMACs at 256 px (DiT paper); the student, less in attention, three
    times as much in training, and the teacher once."""
    config = reproduce.build("lit_imagenet256:XL/2-1.4M")
    teacher = reproduce.teacher_config(config)
    assert teacher is not None and teacher.mixer == "softmax" and teacher.hidden_size == 1152
    upper = 4 * 2 * 118.64e9 * 256 * 1_400_000 / (0.4 * 989e12) / 3600
    assert 0.97 * upper < reproduce.training_hours(config) < 1.03 * upper
    assert reproduce.sampling_hours(config, 1.5) == 2 * reproduce.sampling_hours(config, 1.0)
    other = reproduce.teacher_config(reproduce.build("lit_ablation_distillation:S/2-0.1-0"))
    assert other is not None and other.hidden_size == 384
    large = reproduce.teacher_config(reproduce.build("lit_imagenet512:XL/2"))
    assert large is not None and large.input_size == 64


def test_steps_as_the_papers_write_them() -> None:
    assert common.steps_of("400K") == 400_000
    assert common.steps_of("1.4M") == 1_400_000
    assert reproduce.steps_text(1_400_000) == "1.4M"
