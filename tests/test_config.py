"""Configuration: every error names the value, the limit or remedy, and the nearest name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from lit_jax.config import TrainConfig, from_mapping, unknown_name
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.family import COMPUTE_FIELDS, architecture


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, r"patch_size is 0; it must be an integer of at least 1"),
        ({"in_channels": 0}, r"in_channels is 0; it must be an integer of at least 1"),
        ({"hidden_size": 0}, r"hidden_size is 0; it must be an integer of at least 1"),
        ({"depth": 0}, r"depth is 0; it must be an integer of at least 1"),
        ({"patch_size": 2.0}, r"patch_size is 2\.0; it must be an integer of at least 1"),
        ({"scan_unroll": 0}, r"scan_unroll is 0; it must be an integer of at least 1"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio is 0\.0; it must be positive"),
        ({"input_size": (8, 8, 8)}, r"input_size is \(8, 8, 8\); it must be a side or"),
        ({"num_heads": -1}, r"num_heads is -1; it must be an integer of at least 1"),
        ({"num_classes": -1}, r"num_classes is -1; use 0 for an unconditional model"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob is 1.0; it must be in \[0, 1\)"),
        ({"class_dropout_prob": -0.1}, r"class_dropout_prob is -0.1; it must be in \[0, 1\)"),
        ({"num_heads": 7}, r"hidden_size 1152 is not divisible by num_heads 7"),
        ({"hidden_size": 18, "num_heads": 2}, r"hidden_size 18 is not divisible by 4.*position"),
        ({"input_size": 33}, r"input_size 33 is not a multiple of patch_size 2"),
        ({"input_size": 0}, r"input_size 0 is not a multiple of patch_size 2"),
        ({"input_size": (32, 31)}, r"input_size \(32, 31\) is not a multiple of patch_size 2"),
        ({"kernel_size": 4}, r"kernel_size is 4; it must be odd, or None"),
        ({"mlp_ratio": float("inf")}, r"mlp_ratio is inf; it must be positive"),
        ({"mlp_ratio": float("nan")}, r"mlp_ratio is nan; it must be positive"),
        ({"kernel_size": 0}, r"kernel_size is 0; it must be odd, or None"),
        ({"kernel_size": -1}, r"kernel_size is -1; it must be odd, or None"),
    ],
    ids=str,
)
def test_model_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig(**fields)


def test_derived_values() -> None:
    config = DiTConfig(input_size=(16, 24), patch_size=4, hidden_size=48, mlp_ratio=2.5)
    assert config.image_size == (16, 24) and config.grid == (4, 6) and config.num_tokens == 24
    assert (config.out_channels, config.mlp_width, config.null_label) == (8, 120, 1000)
    assert DiTConfig(input_size=16).image_size == (16, 16)
    assert dataclasses.replace(config, learn_sigma=False).out_channels == 4


@pytest.mark.parametrize(
    ("fields", "null"),
    [({}, 10), ({"class_dropout_prob": 0.0}, None), ({"num_classes": 0}, None)],
    ids=str,
)
def test_null_label(fields: dict[str, Any], null: int | None) -> None:
    assert DiTConfig(**{"num_classes": 10} | fields).null_label == null


def test_configurations_are_values() -> None:
    """Frozen and hashable, so that they are static arguments of jit; lists become tuples."""
    config = DiTConfig(input_size=[8, 16])  # type: ignore[arg-type]
    assert config == DiTConfig(input_size=(8, 16)) and hash(config) == hash(
        DiTConfig(input_size=(8, 16))
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3  # type: ignore[misc]


@pytest.mark.parametrize("size", [16, (8, 16)], ids=str)
def test_architecture_survives_json(size: Any) -> None:
    config = DiTConfig(
        family="LiT", mixer="linear", input_size=size, dtype="bfloat16", remat="full"
    )
    stored = json.loads(json.dumps(architecture(config)))
    assert not set(stored) & set(COMPUTE_FIELDS)
    assert set(stored) | set(COMPUTE_FIELDS) == {f.name for f in dataclasses.fields(DiTConfig)}
    again = from_mapping(DiTConfig, stored, "model")
    assert again == dataclasses.replace(config, dtype="float32", remat="none")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 8}, r"key of config 'batchsize'; did you mean 'batch_size'\?.*total_steps"),
        ({"zzz": 8}, r"key of config 'zzz' \(known: "),
        ({"ema": {"decy": 0.9}}, r"key of config\.ema 'decy'; did you mean 'decay'"),
        ({"ema": 0.9}, r"config\.ema is 0\.9; it must be a group of keys"),
        ({"seed": "1"}, r"config\.seed is '1' \(str\); it must be int"),
        ({"seed": 1.0}, r"config\.seed is 1\.0 \(float\); it must be int"),
        ({"seed": True}, r"config\.seed is True \(bool\); it must be int"),
        ({"data": {"flip": 1}}, r"config\.data\.flip is 1 \(int\); it must be bool"),
        (
            {"optimizer": {"b1": False}},
            r"config\.optimizer\.b1 is False \(bool\); it must be float",
        ),
        ({"data": {"name": None}}, r"config\.data\.name is None \(NoneType\); it must be str"),
        ({"model": {"overrides": 3}}, r"config\.model\.overrides is 3 \(int\); it must be Mapping"),
        ({"inherit": {"freeze": "blocks"}}, r"config\.inherit\.freeze is 'blocks' \(str\)"),
        ({"inherit": {"freeze": ("a", 1)}}, r"config\.inherit\.freeze\[1\] is 1 \(int\)"),
        ({"batch_size": 0}, r"batch_size is 0; it must be at least 1"),
        ({"total_steps": 0}, r"total_steps is 0; it must be at least 1"),
        ({"log_every": 0}, r"log_every is 0; it must be at least 1"),
        ({"checkpoint_every": 0}, r"checkpoint_every is 0; it must be at least 1"),
        ({"optimizer": {"accumulation": 0}}, r"optimizer\.accumulation is 0; it must be at least"),
        ({"keep_checkpoints": 0}, r"keep_checkpoints is 0; it must be at least 1"),
        ({"seed": -1}, r"seed is -1; it must be in \[0, 2\*\*32\)"),
        ({"seed": 2**32}, r"seed is 4294967296; it must be in"),
        ({"sample": {"every": -1}}, r"sample\.every is -1; it must be at least 0"),
        ({"sample": {"count": 0}}, r"sample\.count is 0; it must be at least 1"),
        ({"optimizer": {"warmup_steps": -1}}, r"optimizer\.warmup_steps is -1; it must be at le"),
        ({"optimizer": {"clip_norm": -0.5}}, r"optimizer\.clip_norm is -0\.5; it must be at least"),
        ({"optimizer": {"weight_decay": -1}}, r"optimizer\.weight_decay is -1\.0; it must be at"),
        ({"optimizer": {"learning_rate": 0}}, r"optimizer\.learning_rate is 0\.0; it must be pos"),
        ({"optimizer": {"eps": 0.0}}, r"optimizer\.eps is 0\.0; it must be positive"),
        ({"optimizer": {"b1": 1.0}}, r"optimizer\.b1 is 1\.0; it must be in \[0, 1\)"),
        ({"optimizer": {"b2": -0.1}}, r"optimizer\.b2 is -0\.1; it must be in \[0, 1\)"),
        ({"ema": {"decay": 1.0}}, r"ema\.decay is 1\.0; it must be in \[0, 1\)"),
        ({"ema": {"decay": float("nan")}}, r"ema\.decay is nan; it must be in \[0, 1\)"),
        ({"distill": {"noise_weight": -0.5}}, r"distill\.noise_weight is -0\.5; it must be at"),
        ({"distill": {"variance_weight": -1}}, r"distill\.variance_weight is -1\.0; it must be at"),
        (
            {"distill": {"teacher": "dit", "noise_weight": 0, "variance_weight": 0}},
            r"distill\.teacher is 'dit', but .* are all 0; set one of them, or distill\.teacher",
        ),
        ({"mesh": {"data": 0}}, r"mesh data=0, fsdp=1: sizes are positive, at most one is -1"),
        ({"mesh": {"fsdp": -2}}, r"mesh data=-1, fsdp=-2: sizes are positive"),
        ({"mesh": {"fsdp": -1}}, r"mesh data=-1, fsdp=-1: .* at most one is -1"),
        (
            {"batch_size": 10, "optimizer": {"accumulation": 4}},
            r"batch_size 10 is not divisible by optimizer\.accumulation 4",
        ),
    ],
    ids=str,
)
def test_experiment_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping(TrainConfig, values)


def test_experiment_from_a_mapping() -> None:
    values = {
        "batch_size": 12,
        "model": {"name": "LiT-B/2", "overrides": {"input_size": (8, 8)}, "remat": "full"},
        "optimizer": {"weight_decay": 1, "accumulation": 3},
        "inherit": {"freeze": ["a", "b"]},
    }
    config = from_mapping(TrainConfig, values)
    assert config.batch_size == 12 and config.total_steps == TrainConfig().total_steps
    assert config.model.name == "LiT-B/2" and config.model.overrides == {"input_size": (8, 8)}
    assert config.inherit.freeze == ("a", "b")
    assert config.optimizer.weight_decay == 1.0
    assert isinstance(config.optimizer.weight_decay, float)
    assert from_mapping(TrainConfig, dataclasses.asdict(config)) == config


def test_values_at_the_limits() -> None:
    values = {
        "seed": 2**32 - 1,
        "optimizer": {"b1": 0.0, "b2": 0.0, "clip_norm": 0.0, "warmup_steps": 0},
        "ema": {"decay": 0.0},
        "distill": {"teacher": "", "noise_weight": 0.0, "variance_weight": 0.0},
        "mesh": {"data": 2, "fsdp": -1},
    }
    assert from_mapping(TrainConfig, values).mesh.fsdp == -1


def test_unions_and_optional_fields() -> None:
    config = from_mapping(DiTConfig, {"kernel_size": None, "input_size": [8, 16]}, "model")
    assert config.kernel_size is None and config.input_size == (8, 16)
    with pytest.raises(ValueError, match=r"model\.kernel_size is '5' \(str\); it must be int"):
        from_mapping(DiTConfig, {"kernel_size": "5"}, "model")
    with pytest.raises(ValueError, match=r"model\.input_size is 1\.5 \(float\); it must be"):
        from_mapping(DiTConfig, {"input_size": 1.5}, "model")


def test_a_mapping_is_not_shared_with_its_source() -> None:
    @dataclass(frozen=True)
    class Holder:
        values: Mapping[str, Any] = field(default_factory=dict)

    source = {"a": 1}
    # Annotations of a local class are resolved in this module.
    held = from_mapping(Holder, {"values": source})
    source["a"] = 2
    assert held.values == {"a": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lineer", "unknown mixer 'lineer'; did you mean 'linear'? (known: focused, linear)"),
        ("x", "unknown mixer 'x' (known: focused, linear)"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    assert str(unknown_name("mixer", name, ["linear", "focused"])) == message
