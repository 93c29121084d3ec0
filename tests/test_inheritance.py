"""Inheritance: every policy copies exactly what it names, and the report accounts for all of it."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lit_jax.inheritance import POLICIES, InheritanceReport, inherit
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import Params, abstract_params, apply_fn, count_params
from lit_jax.models.registry import model_config

TINY = {"hidden_size": 8, "depth": 2, "input_size": 4, "num_classes": 3}


def teacher_config(**overrides: Any) -> DiTConfig:
    return model_config("DiT", **TINY | {"num_heads": 4} | overrides)


def student_config(**overrides: Any) -> DiTConfig:
    return model_config("LiT", **TINY | {"num_heads": 2, "kernel_size": 3} | overrides)


def draw(config: DiTConfig, seed: int) -> Params:
    rng = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(abstract_params(config), sep="/")
    drawn = {path: rng.standard_normal(a.shape).astype(np.float32) for path, a in leaves.items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


def flat(params: Params) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(params, sep="/")


def passed_on(
    student: DiTConfig, teacher: DiTConfig, policy: str, **options: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray], InheritanceReport]:
    """Flat parameters (result, student's, teacher's) and the report; checks the book-keeping."""
    own, given = draw(student, 1), draw(teacher, 2)
    result, report = inherit(student, own, teacher, given, policy, **options)
    assert report.totals["student"] == count_params(own) == count_params(result)
    assert report.totals["inherited"] + report.totals["dropped"] == count_params(given)
    return flat(result), flat(own), flat(given), report


@pytest.mark.parametrize(
    ("policy", "projections"),
    [
        ("all_but_attention", ""),
        ("q", "q"),
        ("k", "k"),
        ("v", "v"),
        ("kv", "kv"),
        ("qkv", "qkv"),
        ("o", ["out"]),
    ],
)
def test_each_policy_inherits_exactly_its_leaves(policy: str, projections: Any) -> None:
    result, own, given, report = passed_on(student_config(), teacher_config(), policy)
    named = {f"blocks/attn/{p}/{leaf}" for p in projections for leaf in ("kernel", "bias")}
    expected = {path for path in own if not path.startswith("blocks/attn/")} | named
    assert set(report.inherited) == expected
    assert set(report.new) == set(own) - expected
    assert set(report.dropped) == set(given) - expected
    for path in own:
        np.testing.assert_array_equal(result[path], (given if path in expected else own)[path])


def test_none_inherits_nothing() -> None:
    result, own, given, report = passed_on(student_config(), teacher_config(), "none")
    assert report.inherited == {} and set(report.dropped) == set(given)
    for path in own:
        np.testing.assert_array_equal(result[path], own[path])


def test_softmax_student_with_every_weight_equals_its_teacher_bit_for_bit() -> None:
    config = teacher_config()
    teacher = draw(config, 2)
    student, report = inherit(config, draw(config, 1), config, teacher, "all")
    assert report.new == {} and report.dropped == {}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 4, 4)).astype(np.float32)
    apply = jax.jit(apply_fn(config))
    outputs = [
        np.asarray(apply(p, x, np.array([3, 900]), np.array([1, 3]))) for p in (student, teacher)
    ]
    assert np.abs(outputs[0]).max() > 0
    np.testing.assert_array_equal(*outputs)


def test_all_needs_every_leaf() -> None:
    with pytest.raises(ValueError, match="blocks/attn/dwc/kernel: .* teacher has none") as error:
        passed_on(student_config(), teacher_config(), "all")
    assert "2 parameter(s)" in str(error.value)
    _, _, _, report = passed_on(
        student_config(), teacher_config(), "all", reinitialise=["blocks/attn/dwc"]
    )
    assert set(report.new) == {"blocks/attn/dwc/kernel", "blocks/attn/dwc/bias"}
    with pytest.raises(ValueError, match="y_embedder/embedding: .* teacher has none"):
        passed_on(teacher_config(), teacher_config(num_classes=0), "all")


def test_projection_without_bias_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="blocks/attn/q/bias.*teacher has none") as error:
        passed_on(student_config(), teacher_config(qkv_bias=False), "q")
    assert "`reinitialise`" in str(error.value)


def test_another_label_count_inherits_the_null_row() -> None:
    student = student_config(num_classes=5)
    result, own, given, report = passed_on(student, teacher_config(), "all_but_attention")
    table = result["y_embedder/embedding"]
    np.testing.assert_array_equal(table[:5], own["y_embedder/embedding"][:5])
    np.testing.assert_array_equal(table[5], given["y_embedder/embedding"][3])
    path = "y_embedder/embedding"
    assert (report.inherited[path], report.new[path], report.dropped[path]) == (8, 40, 24)
    assert "label table: partly inherited, 1 of 6 rows" in report.table()


@pytest.mark.parametrize(
    ("student", "teacher", "inherited", "new", "dropped"),
    [
        ({"class_dropout_prob": 0.0}, {}, 24, 0, 8),
        ({}, {"class_dropout_prob": 0.0}, 24, 8, 0),
        ({"class_dropout_prob": 0.0, "num_classes": 4}, {}, 0, 32, 32),  # same shape, other rows
        ({}, {"num_classes": 0}, 0, 32, 0),
        ({"num_classes": 0}, {}, 0, 0, 32),
    ],
)
def test_label_tables(
    student: dict[str, Any], teacher: dict[str, Any], inherited: int, new: int, dropped: int
) -> None:
    result, own, given, report = passed_on(
        student_config(**student), teacher_config(**teacher), "all_but_attention"
    )
    path = "y_embedder/embedding"
    counts = [group.get(path, 0) for group in (report.inherited, report.new, report.dropped)]
    assert counts == [inherited, new, dropped]
    if inherited:
        np.testing.assert_array_equal(result[path][:3], given[path][:3])
    if inherited and new:
        np.testing.assert_array_equal(result[path][3:], own[path][3:])
    if not teacher.get("num_classes", 3):
        assert "the teacher is unconditional" in report.table()
    if not student.get("num_classes", 3):
        assert "label table: dropped, the student is unconditional" in report.table()


def test_another_resolution_recomputes_the_position_table() -> None:
    student = student_config(input_size=(8, 4))
    _, _, _, report = passed_on(student, teacher_config(), "all_but_attention")
    assert report.notes == ["position table: analytic, recomputed from 2x2 to 4x2 tokens"]
    _, _, _, report = passed_on(student_config(), teacher_config(), "all_but_attention")
    assert report.notes == []


def test_other_head_counts_are_reported() -> None:
    _, _, _, report = passed_on(student_config(), teacher_config(), "kv")
    assert "attention projections: 4 heads in the teacher, 2 in the student" in report.table()


def test_another_depth_or_width_lists_every_mismatch() -> None:
    with pytest.raises(ValueError, match="cannot be inherited") as error:
        passed_on(student_config(depth=3), teacher_config(), "all_but_attention")
    text = str(error.value)
    assert "blocks/mlp/fc1/kernel: student (3, 8, 32), teacher (2, 8, 32)" in text
    assert text.count("student (") == 6 and "regular expression in `reinitialise`" in text
    deep, options = student_config(depth=3), {"reinitialise": ["blocks/"]}
    passed_on(deep, teacher_config(), "all_but_attention", **options)
    with pytest.raises(ValueError, match=r"y_embedder/embedding: student \(16,\), teacher \(8,\)"):
        passed_on(student_config(hidden_size=16), teacher_config(), "all_but_attention")


def test_patches_of_the_same_number_of_values_are_not_the_same_patches() -> None:
    """2x2 patches of 4 channels and 4x4 patches of one: equal shapes, other meaning."""
    student = student_config(patch_size=4, in_channels=1)
    with pytest.raises(ValueError, match="3 parameter") as error:
        passed_on(student, teacher_config(), "all_but_attention")
    assert "x_embedder/kernel: student (4, 4, 1, 8), teacher (2, 2, 4, 8)" in str(error.value)
    options = {"reinitialise": ["x_embedder/kernel", "final_layer/linear"]}
    passed_on(student, teacher_config(), "all_but_attention", **options)
    # Four noise channels, or noise and variance of two.
    with pytest.raises(ValueError, match="final_layer/linear/bias"):
        passed_on(
            student_config(in_channels=2),
            teacher_config(learn_sigma=False),
            "all_but_attention",
            reinitialise=["x_embedder/kernel"],
        )


def test_reinitialise_and_freeze() -> None:
    result, own, _, report = passed_on(
        student_config(),
        teacher_config(),
        "all_but_attention",
        reinitialise=["final_layer", "mlp/fc2/bias"],
        freeze=["^t_embedder/", "blocks/attn/dwc"],
    )
    kept = {path for path in own if path.startswith("final_layer")} | {"blocks/mlp/fc2/bias"}
    assert kept <= set(report.new) and not kept & set(report.inherited)
    np.testing.assert_array_equal(result["blocks/mlp/fc2/bias"], own["blocks/mlp/fc2/bias"])
    frozen = {p for p in own if p.startswith(("t_embedder/", "blocks/attn/dwc"))}
    assert report.frozen == {path: own[path].size for path in frozen}
    for option in ("reinitialise", "freeze"):
        with pytest.raises(ValueError, match="'atention' matches no parameter"):
            passed_on(student_config(), teacher_config(), "none", **{option: ["atention"]})


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="did you mean 'all_but_attention'"):
        passed_on(student_config(), teacher_config(), "all_but_atention")


def test_report_formats() -> None:
    _, own, given, report = passed_on(
        student_config(), teacher_config(), "kv", freeze=["x_embedder"]
    )
    stored = json.loads(report.to_json())
    assert stored["policy"] == "kv" and stored["inherited"] == report.inherited
    assert stored["totals"]["student"] == sum(leaf.size for leaf in own.values())
    assert stored["totals"]["frozen"] == 136
    lines = report.table().splitlines()
    assert len({len(line) for line in lines[1:4]}) == 1
    assert all(any(line.startswith(path) for line in lines) for path in {**own, **given})
    assert f"student: {stored['totals']['student']:,} = inherited + new" in report.table()


def test_policies_are_the_rows_of_table_3() -> None:
    assert set(POLICIES) == {"none", "all_but_attention", "q", "k", "v", "kv", "qkv", "o", "all"}


@pytest.mark.parametrize("policy", ["all_but_attention", "qkv"])
@pytest.mark.parametrize("numpy_teacher", [True, False])
def test_sharding_dtype_and_memory_stay_the_students_own(policy: str, numpy_teacher: bool) -> None:
    """Results keep sharding and dtype, and donating them leaves the teacher alive."""
    student, teacher = student_config(num_classes=5), teacher_config()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("fsdp",))

    def place(leaf: np.ndarray) -> jax.Array:
        spec = ("fsdp",) if leaf.shape[0] % 2 == 0 else ()
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.device_put(leaf, sharding)

    own = jax.tree.map(place, draw(student, 1))
    given_numpy = draw(teacher, 2)
    given = given_numpy if numpy_teacher else jax.tree.map(place, given_numpy)
    result, report = inherit(student, own, teacher, given, policy)
    assert report.inherited
    for path, leaf in flat(result).items():
        assert leaf.sharding == flat(own)[path].sharding, path
        assert leaf.dtype == np.float32
    donated = jax.jit(lambda p: jax.tree.map(lambda a: a * 0, p), donate_argnums=0)(result)
    jax.block_until_ready(donated)
    jax.tree.map(np.testing.assert_array_equal, given, draw(teacher, 2))
    if policy == "qkv":
        assert float(jnp.abs(flat(donated)["blocks/attn/q/kernel"]).max()) == 0


def test_numpy_results_own_their_memory() -> None:
    config = teacher_config()
    given = draw(config, 2)
    result, _ = inherit(config, draw(config, 1), config, given, "all")
    result["x_embedder"]["kernel"][:] = 0
    assert given["x_embedder"]["kernel"].any()
