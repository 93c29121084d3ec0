"""Every experiment file, with every argument it takes, is one that can be run."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from configs import reproduce
from lit_jax.config import EncodeConfig, from_mapping
from lit_jax.config.self_generate import SelfGenerateConfig
from lit_jax.diffusion.gaussian import create_process
from lit_jax.inheritance import POLICIES, inherited_paths
from lit_jax.models import functional, registry
from lit_jax.models.pixart.config import PixArtConfig
from lit_jax.objectives import hybrid_objective
from lit_jax.sampling.sampler import check_protocol, function_evaluations
from lit_jax.sharding import path_string
from lit_jax.training.optimizer import OPTIMIZERS, SCHEDULES, frozen_mask, learning_rate
from support.config_cases import (
    ARGUMENTS,
    CASES,
    CLEAR,
    DRAWN,
    ENCODE,
    IMAGENET,
    NOT_EXPERIMENTS,
    PIXELS,
    ROOT,
    TEXT,
    build,
    module,
)


def test_every_file_has_a_row() -> None:
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - NOT_EXPERIMENTS
    assert files == set(ARGUMENTS) | set(ENCODE) | set(DRAWN)


@pytest.mark.parametrize("name, argument", CASES)
def test_config_builds(name: str, argument: str | None) -> None:
    config = build(name, argument)
    compute = {k: getattr(config.model, k) for k in ("dtype", "remat", "scan_unroll")}
    model = registry.model_config(config.model.name, **config.model.overrides, **compute)
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
    elif name in PIXELS:
        assert (model.image_size, model.in_channels) == ((32, 32), 3)
        assert model.num_classes == (0 if argument == "images" else 10)
    elif name not in CLEAR:
        assert (model.image_size, model.in_channels, model.num_classes) == ((8, 8), 1, 10)


@pytest.mark.parametrize("name", ENCODE)
def test_encode_config_builds(name: str) -> None:
    arguments = [(argument,) for argument in ENCODE[name]] or [()]
    built = [
        from_mapping(EncodeConfig, module(name).get_config(*chosen).to_dict())
        for chosen in arguments
    ]
    assert len(set(map(repr, built))) == len(built)


@pytest.mark.parametrize("name", DRAWN)
def test_self_generate_config_builds(name: str) -> None:
    """Every teacher is drawn by the protocol of its kind, at the cost that the table gives."""
    for argument in DRAWN[name]:
        settings = module(name).get_config(argument).to_dict()
        config = from_mapping(SelfGenerateConfig, settings)
        named = "PixArt-Sigma-XL/2" if config.text.encoder else "DiT-XL/2"
        check_protocol(config.protocol, registry.model_config(named))
        rows = [line.split() for line in module(name).__doc__.splitlines()]
        (row,) = [row for row in rows if row[:1] == [argument]]
        assert row[1] == config.model
        assert row[-2:] == [f"{config.cfg_scale:g}", str(function_evaluations(config.protocol))]


@pytest.mark.parametrize(
    "name", [name for name, row in (ARGUMENTS | ENCODE | DRAWN).items() if row]
)
def test_wrong_argument_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="'nonsense' is not one of") as error:
        module(name).get_config("nonsense")
    assert all(argument in str(error.value) for argument in (ARGUMENTS | ENCODE | DRAWN)[name])
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
        model = registry.model_config(config.model.name, **config.model.overrides)
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


@pytest.mark.parametrize("name", CLEAR)
def test_students_of_clear(name: str) -> None:
    """CLEAR, sections 3 and 4, on a teacher of these models: its weights are taken over, all of
    them, and only the attention is trained, on what the teacher drew."""
    rows = {line.split()[0]: line.split() for line in module(name).__doc__.splitlines() if line}
    for argument in ARGUMENTS[name]:
        config = build(name, argument)
        student = registry.model_config(config.model.name, **config.model.overrides)
        assert student.mixer == "window"
        teacher = dataclasses.replace(student, mixer="softmax", down_factor=None)
        shapes = functional.abstract_params(student), functional.abstract_params(teacher)
        inherit, distill = config.inherit, config.distill
        assert inherit.source == distill.teacher
        paths = inherited_paths(
            student, shapes[0], teacher, shapes[1], inherit.policy, inherit.reinitialise
        )
        frozen = frozen_mask(shapes[0], inherit.freeze)
        leaves = jax.tree_util.tree_leaves_with_path(frozen)
        trained = [path_string(path) for path, is_frozen in leaves if not is_frozen]
        projections = [f"blocks/attn/{n}/{p}" for n in "kqv" for p in ("bias", "kernel")]
        projections += ["blocks/attn/out/bias", "blocks/attn/out/kernel"]
        new = ["blocks/attn/pool/kernel"] if student.down_factor else []
        assert sorted(trained) == sorted(projections + new)
        assert len(paths) + len(new) == len(leaves)
        weights = (distill.noise_weight, distill.attention_weight, distill.attention_every)
        assert weights == (0.5, 0.5, 4)
        adamw = config.optimizer
        assert (adamw.learning_rate, adamw.weight_decay, adamw.clip_norm) == (1e-4, 1e-4, 1)
        assert (config.total_steps, config.batch_size, config.data.flip) == (10_000, 32, False)
        drawn, _, _ = config.data.name.partition("_drawn")
        assert f"--out data/{drawn}_drawn" in module(name).__doc__
        # The table of the file: radius, side of the patches, mean number of keys.
        size, _, window = argument.partition("-")
        row = rows[argument if argument in rows else f"SIZE-{window}"]
        R, C = student.grid
        y, x = np.arange(1 - R, R)[:, None], np.arange(1 - C, C)
        inside = y**2 + x**2 < student.window_size**2
        keys = np.sum(inside * (R - abs(y)) * (C - abs(x))) / (R * C)
        factor, text = student.down_factor, f"{keys:.0f}"
        pooled = [f"{factor}", "x", f"{factor}"] if factor else ["-"]
        far = ["+", f"{R * C // factor**2}"] if factor else []
        expected = ["10K", "32", f"{student.window_size}", *pooled, text, *far]
        assert row[1 : 1 + len(expected)] == expected


def test_ablations_change_what_they_are_about() -> None:
    focused = reproduce.student_config(build("lit_ablation_attention", "B/2-focused_gelu"))
    assert (focused.mixer, focused.kernel_fn, focused.num_heads) == ("focused", "gelu", 12)
    plain = reproduce.student_config(build("lit_ablation_attention", "S/2-relu"))
    assert (plain.mixer, plain.kernel_size, plain.num_heads) == ("linear", None, 6)
    sana = reproduce.student_config(build("lit_ablation_attention", "B/2-sana"))
    assert (sana.mixer, sana.kernel_size, sana.qkv_bias) == ("sana", None, False)
    assert sana.hidden_size // sana.num_heads == 32
    gated = reproduce.student_config(build("dig_imagenet256", "XL/2"))
    assert (gated.family, gated.mixer, gated.num_heads) == ("DiG", "gated", 18)
    window = reproduce.student_config(build("lit_ablation_attention", "S/2-window"))
    assert (window.family, window.mixer, window.window_size) == ("CLEAR", "window", 8)
    assert window.num_heads == 6
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
