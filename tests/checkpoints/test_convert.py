"""Strict conversion: round trips are the identity, everything that does not fit is listed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from lit_jax.checkpoints.convert import export_params, import_params, start_import
from lit_jax.checkpoints.layouts import layout_of, layouts, layouts_for
from lit_jax.checkpoints.pairing import layout_named, slots
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import Params, abstract_params
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.registry import model_config

TINY = {"hidden_size": 8, "depth": 2, "num_heads": 2, "input_size": 4, "num_classes": 3}
VARIANTS = {
    "softmax": {"name": "DiT"},
    "softmax without qkv bias": {"name": "DiT", "qkv_bias": False},
    "unconditional": {"name": "DiT", "num_classes": 0},
    "no null row, no sigma, patch 4": {
        "name": "DiT",
        "class_dropout_prob": 0.0,
        "learn_sigma": False,
        "patch_size": 4,
        "in_channels": 3,
        "mlp_ratio": 2.5,
    },
    "not square": {"name": "DiT", "input_size": (4, 8)},
    "linear": {"name": "LiT"},
    "linear without convolution": {"name": "LiT", "kernel_size": None},
    "linear, kernel 3, no bias": {"name": "LiT", "kernel_size": 3, "qkv_bias": False},
    "focused": {"name": "LiT", "mixer": "focused"},
}


def tiny(**overrides: object) -> DiTConfig:
    values = TINY | overrides
    return model_config(str(values.pop("name", "DiT")), **values)


def random_params(config: DiTConfig, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(abstract_params(config), sep="/")
    drawn = {path: rng.standard_normal(a.shape).astype(np.float32) for path, a in leaves.items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


def exported(config: DiTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    return export_params(random_params(config, seed), config, layouts_for(config)[0])


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_export_then_import_is_the_identity(variant: dict[str, object]) -> None:
    config = tiny(**variant)
    params = random_params(config)
    state = export_params(params, config, layouts_for(config)[0])
    calls: list[tuple[int, int]] = []
    back, report = import_params(state, config, None, lambda *n: calls.append(n))
    one, two = (traverse_util.flatten_dict(p, sep="/") for p in (params, back))
    assert set(one) == set(two)
    for path, leaf in one.items():
        assert two[path].dtype == np.float32
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)
    assert report.used == len(state) - 1 and set(report.dropped) == {"pos_embed"}
    assert report.parameters == sum(leaf.size for leaf in one.values())
    assert calls[-1] == (report.parameters, report.parameters)


def test_fused_projections_are_split_in_order() -> None:
    config = tiny()
    state = exported(config)
    D = config.hidden_size
    state["blocks.1.attn.qkv.weight"] = np.arange(3 * D * D, dtype=np.float32).reshape(3 * D, D)
    attn = import_params(state, config)[0]["blocks"]["attn"]
    for n, name in enumerate("qkv"):
        rows = state["blocks.1.attn.qkv.weight"][n * D : (n + 1) * D]
        np.testing.assert_array_equal(attn[name]["kernel"][1], rows.T)
    state = exported(tiny(name="LiT"))
    attn = import_params(state, tiny(name="LiT"))[0]["blocks"]["attn"]
    np.testing.assert_array_equal(attn["v"]["bias"][0], state["blocks.0.attn.kv.bias"][D:])


def test_patch_kernel_rows_are_row_column_channel() -> None:
    config = tiny()
    state = exported(config)
    weight = state["x_embedder.proj.weight"]  # [D, C, p, p]
    kernel = import_params(state, config)[0]["x_embedder"]["kernel"]
    row, column, channel = 1, 0, 2
    index = (row * config.patch_size + column) * config.in_channels + channel
    np.testing.assert_array_equal(kernel[index], weight[:, channel, row, column])


def test_all_problems_come_in_one_error() -> None:
    config = tiny()
    state = exported(config)
    state["stranger.weight"] = np.zeros(3, np.float32)
    state["blocks.2.mlp.fc1.bias"] = np.zeros(32, np.float32)
    del state["blocks.1.mlp.fc2.bias"]
    del state["t_embedder.mlp.0.weight"]
    state["final_layer.linear.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match=r"5 problem\(s\)") as error:
        import_params(state, config)
    text = str(error.value)
    for expected in (
        "unused key 'stranger.weight' (3,)",
        "unused key 'blocks.2.mlp.fc1.bias'",
        "unfilled parameter blocks/mlp/fc2/bias[1]: key 'blocks.1.mlp.fc2.bias' (8,)",
        "unfilled parameter t_embedder/fc1/kernel: key 't_embedder.mlp.0.weight' (8, 256)",
        "'final_layer.linear.bias': checkpoint (7,), model (32,)",
    ):
        assert expected in text, text


def test_bad_numbers_are_refused_together() -> None:
    config = tiny()
    state = exported(config)
    state["x_embedder.proj.bias"][3] = np.nan
    state["blocks.0.attn.proj.bias"] = np.zeros(8, np.int64)
    with pytest.raises(ValueError, match=r"2 problem\(s\)") as error:
        import_params(state, config)
    assert "'x_embedder.proj.bias' holds 1 non-finite values of 8" in str(error.value)
    assert "'blocks.0.attn.proj.bias' has dtype int64" in str(error.value)


@pytest.mark.filterwarnings("error")
def test_an_overfull_tensor_is_listed_once() -> None:
    """The three parts of a fused tensor are one key of the file; numpy says nothing."""
    config = tiny()
    state = exported(config)
    weight = state["blocks.0.attn.qkv.weight"].astype(np.float64)
    weight[[0, 9, 17], 0] = 1e300
    state["blocks.0.attn.qkv.weight"] = weight
    state["blocks.0.attn.qkv.bias"] = np.zeros(24, np.complex64)
    with pytest.raises(ValueError) as error:
        import_params(state, config)
    assert sorted(str(error.value).split("\n")[1:]) == [
        "  'blocks.0.attn.qkv.bias' has dtype complex64; floating point is needed",
        "  'blocks.0.attn.qkv.weight' holds 3 non-finite values of 192",
    ]


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_the_written_dtype_are_a_problem() -> None:
    """float32 reaches further than bfloat16 once that is rounded."""
    config = tiny()
    state = exported(config)
    state["blocks.1.attn.proj.bias"][2:4] = [3.4e38, -3.4e38]
    state["x_embedder.proj.bias"][0] = 3.38e38
    import_params(state, config)
    work = start_import(state, config)
    for leaf in work.unread(np.dtype("bfloat16")).values():
        leaf.read()
    with pytest.raises(ValueError) as error:
        work.finish()
    assert str(error.value).split("\n")[1:] == [
        "  blocks/attn/out/bias[1] holds 2 of 8 values beyond bfloat16; keep it in float32"
    ]


def test_copies_that_differ_are_refused() -> None:
    """diffusers gives every block of a DiT a timestep embedder; they have to be one."""
    config = tiny(input_size=4, num_classes=1000)
    params = random_params(config)
    state = export_params(params, config, "diffusers")
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.weight"
    import_params(state, config)
    state[key] = state[key].copy()
    state[key][1, 2] += 1e-6
    with pytest.raises(ValueError) as error:
        import_params(state, config)
    first = key.replace("blocks.1", "blocks.0")
    assert str(error.value).split("\n")[1:] == [
        f"  '{key}' is not the copy of '{first}' it must be"
    ]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(dtype: np.dtype) -> None:
    config = tiny()
    state = {key: value.astype(dtype) for key, value in exported(config).items()}
    params, _ = import_params(state, config)
    bias = params["x_embedder"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, state["x_embedder.proj.bias"].astype(np.float32))


def test_another_position_table_is_refused_with_the_difference() -> None:
    config = tiny(hidden_size=16)
    state = exported(config)
    state["pos_embed"][0, 1, 2] += 0.25
    with pytest.raises(ValueError, match=r"2x2 token grid \(max difference 0.25\)"):
        import_params(state, config)
    # The same number of tokens in another arrangement is another table.
    other = sincos_position_table((1, 4), 16)[None]
    with pytest.raises(ValueError, match="input_size=HEIGHTxWIDTH"):
        import_params(exported(config) | {"pos_embed": other}, config)
    with pytest.raises(ValueError, match=r"pos_embed has shape \(1, 9, 16\)"):
        import_params(exported(config) | {"pos_embed": np.zeros((1, 9, 16), np.float32)}, config)


def test_position_table_may_be_missing() -> None:
    config = tiny()
    state = exported(config)
    del state["pos_embed"]
    assert import_params(state, config)[1].dropped == {}


@pytest.mark.parametrize(("name", "layout"), [("DiT", "lit"), ("LiT", "dit")])
def test_layout_must_hold_the_mixer(name: str, layout: str) -> None:
    config = tiny(name=name)
    with pytest.raises(ValueError, match=f"layout '{layout}' cannot hold"):
        export_params(random_params(config), config, layout)


def test_layout_is_told_by_the_keys() -> None:
    assert layout_of(["blocks.0.attn.qkv.weight"]).name == "dit"
    assert layout_of(["blocks.0.attn.kv.weight"]).name == "lit"
    with pytest.raises(
        ValueError, match="its 1 keys start with transformer.h.0.attn.c_attn.weight"
    ):
        layout_of(["transformer.h.0.attn.c_attn.weight"])
    with pytest.raises(ValueError, match="of more than one layout: dit .*, lit "):
        layout_of(["blocks.0.attn.qkv.weight", "blocks.0.attn.kv.weight"])


def test_no_key_and_no_leaf_has_two_rows() -> None:
    for layout in layouts():
        sources = [row.source for row in layout.rows]
        targets = [target for row in layout.rows for target in row.targets]
        assert len(set(sources)) == len(sources) and len(set(targets)) == len(targets)


def test_xl_has_the_official_number_of_keys() -> None:
    """291 tensors of DiT-XL/2 and the position table; no memory is allocated."""
    config = model_config("DiT-XL/2")
    assert len(slots(layout_named(config, "dit"), config)) + 1 == 292
