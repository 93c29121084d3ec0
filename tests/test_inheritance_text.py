"""Inheritance between text-to-image networks: PixArt teachers, PixArt and LiT students."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from flax import traverse_util

from lit_jax.inheritance import POLICIES, InheritanceReport, inherit
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import Params, abstract_params, count_params
from lit_jax.models.pixart.config import KVCompressConfig, PixArtConfig
from lit_jax.models.pixart.model import position_table
from lit_jax.models.registry import DenoiserConfig
from support.attention_cases import random_like
from support.pixart_cases import batch, forward, tiny

TEACHER = tiny(qk_norm=True, kv_compress_config=KVCompressConfig("conv", 2, (1, 2)))
LIT = tiny(mixer="linear", num_heads=3, cross_num_heads=2)

Flat = dict[str, np.ndarray]


def draw(config: DenoiserConfig, seed: int) -> Params:
    return random_like(abstract_params(config), seed)


def flat(params: Params) -> Flat:
    return traverse_util.flatten_dict(params, sep="/")


def passed_on(
    student: DenoiserConfig, teacher: DenoiserConfig, policy: str, **options: Any
) -> tuple[Params, Flat, Flat, InheritanceReport]:
    """The result, the student's and the teacher's flat parameters, the report; checks the sums."""
    own, given = draw(student, 1), draw(teacher, 2)
    result, report = inherit(student, own, teacher, given, policy, **options)
    assert report.totals["student"] == count_params(own) == count_params(result)
    assert report.totals["inherited"] + report.totals["dropped"] == count_params(given)
    return result, flat(own), flat(given), report


@pytest.mark.parametrize(
    ("policy", "projections"),
    [
        ("all_but_attention", []),
        ("q", ["q"]),
        ("kv", ["k", "v"]),
        ("qkv", ["q", "k", "v"]),
        ("o", ["out"]),
    ],
)
def test_a_linear_student_keeps_everything_but_self_attention(
    policy: str, projections: list[str]
) -> None:
    """Cross-attention, caption embedder and null caption are the teacher's; its key/value filters
    and norms of q and k are dropped with the rest of its self-attention."""
    result, own, given, report = passed_on(LIT, TEACHER, policy)
    named = {f"blocks/attn/{p}/{leaf}" for p in projections for leaf in ("kernel", "bias")}
    expected = {path for path in own if not path.startswith("blocks/attn/")} | named
    assert set(report.inherited) == expected
    assert {"y_embedder/null_caption", "blocks/cross_attn/q/kernel"} <= expected
    assert set(report.dropped) == set(given) - expected
    assert {"kv_compress/conv/kernel", "kv_compress/norm/scale"} <= set(report.dropped)
    assert "blocks/attn/q_norm/scale" in report.dropped
    for path, leaf in flat(result).items():
        np.testing.assert_array_equal(leaf, (given if path in expected else own)[path])


def test_a_softmax_student_without_the_teachers_attention() -> None:
    """All of the self-attention is its own, including the compression."""
    _, own, _, report = passed_on(TEACHER, TEACHER, "all_but_attention")
    assert set(report.new) == {p for p in own if p.startswith(("blocks/attn/", "kv_compress/"))}


def test_a_student_with_every_weight_equals_its_teacher_bit_for_bit() -> None:
    result, _, given, report = passed_on(TEACHER, TEACHER, "all")
    assert report.new == {} and report.dropped == {} and report.notes == []
    outputs = [
        np.asarray(forward(TEACHER)(params, *batch(TEACHER)))
        for params in (result, traverse_util.unflatten_dict(given, sep="/"))
    ]
    assert np.abs(outputs[0]).max() > 0
    np.testing.assert_array_equal(*outputs)


def test_twice_the_resolution() -> None:
    """512 to 1024 px: nominal size and pe_interpolation double, nothing is resampled, and the
    student's positions are those of a network made for the larger size."""
    teacher, student = (
        tiny(mixer="linear", input_size=size, pe_interpolation=scale)
        for size, scale in ((8, 1.0), (16, 2.0))
    )
    result, _, given, report = passed_on(student, teacher, "all")
    assert report.new == {} and report.dropped == {}
    for path, leaf in flat(result).items():
        np.testing.assert_array_equal(leaf, given[path])
    assert report.notes == [
        "position table: analytic, recomputed from 4x4 tokens at pe_interpolation 1 to 8x8 tokens"
        " at pe_interpolation 2"
    ]
    assert position_table(student).shape == (64, 24)
    # Every second token of the finer grid stands where a token of the coarse one stood.
    finer = position_table(student).reshape(8, 8, -1)[::2, ::2]
    np.testing.assert_array_equal(finer.reshape(16, -1), position_table(teacher))
    out = forward(student)(result, *batch(student))
    assert out.shape == (2, 16, 16, 6) and np.isfinite(out).all() and np.any(out)
    # The same range is spanned by any number of tokens: on the teacher's size they are one network.
    x, t, cond = batch(teacher)
    ours, theirs = (forward(config)(result, x, t, cond) for config in (student, teacher))
    np.testing.assert_array_equal(ours, theirs)


def test_a_larger_size_without_its_scale_is_pointed_out() -> None:
    student = tiny(mixer="linear", input_size=16)
    _, _, _, report = passed_on(student, tiny(mixer="linear"), "all")
    assert "positions span 8x8 instead of 4x4, so the student gets other codes" in report.table()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_teacher_of_another_kind(policy: str) -> None:
    labels = DiTConfig(input_size=8, hidden_size=24, depth=3, num_heads=2, in_channels=3)
    with pytest.raises(ValueError, match="a PixArt student cannot inherit from a DiT teacher: one"):
        passed_on(LIT, labels, policy)
    with pytest.raises(ValueError, match="a LiT student cannot inherit from a PixArt teacher"):
        linear = dataclasses.replace(labels, family="LiT", mixer="linear")
        passed_on(linear, TEACHER, policy)


def test_another_number_of_cross_attention_heads() -> None:
    """The same matrices would be another function, so that shapes cannot tell."""
    student = dataclasses.replace(LIT, cross_num_heads=3)
    with pytest.raises(ValueError, match=r"blocks/cross_attn: student 3 heads, teacher 2") as error:
        passed_on(student, TEACHER, "all_but_attention")
    assert "give the student cross_num_heads=2" in str(error.value)
    passed_on(student, TEACHER, "all_but_attention", reinitialise=["blocks/cross_attn"])
    passed_on(student, TEACHER, "none")


def test_filters_of_other_layers() -> None:
    """Two layers of filters each, but not of the same layers."""
    student = dataclasses.replace(TEACHER, kv_compress_config=KVCompressConfig("conv", 2, (0, 2)))
    with pytest.raises(ValueError, match=r"kv_compress: student layers \(0, 2\), teacher .*1, 2"):
        passed_on(student, TEACHER, "all")
    passed_on(student, TEACHER, "all", reinitialise=["kv_compress/"])
    passed_on(student, TEACHER, "all_but_attention")


def test_a_teacher_without_null_caption() -> None:
    """As converted from diffusers. The student must not silently train with a random one."""
    teacher = tiny(model_max_length=None)
    with pytest.raises(ValueError, match="y_embedder/null_caption: .* teacher has none") as error:
        passed_on(LIT, teacher, "all_but_attention")
    assert "give the student model_max_length=None" in str(error.value)
    student = dataclasses.replace(LIT, model_max_length=None)
    _, _, _, report = passed_on(student, teacher, "all_but_attention")
    assert "y_embedder/null_caption" not in report.new
    own = {"reinitialise": ["y_embedder/null_caption"]}
    _, _, _, report = passed_on(LIT, teacher, "all_but_attention", **own)
    assert report.new["y_embedder/null_caption"] == 50
    _, _, _, report = passed_on(student, TEACHER, "all_but_attention")
    assert report.dropped["y_embedder/null_caption"] == 50
    with pytest.raises(ValueError, match=r"null_caption: student \(7, 10\), teacher \(5, 10\)"):
        passed_on(dataclasses.replace(LIT, model_max_length=7), TEACHER, "all_but_attention")


def test_micro_conditions_are_inherited_or_dropped() -> None:
    micro: PixArtConfig = tiny(micro_condition=True)
    _, _, _, report = passed_on(LIT, micro, "all_but_attention")
    assert {"csize_embedder/fc1/kernel", "ar_embedder/fc2/bias"} <= set(report.dropped)
    with pytest.raises(ValueError, match="csize_embedder/fc1/kernel: .* teacher has none"):
        passed_on(dataclasses.replace(LIT, micro_condition=True), TEACHER, "all_but_attention")
