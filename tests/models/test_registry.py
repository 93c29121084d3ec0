"""Named models: sizes, parameter counts, paths of the parameters, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import (
    abstract_params,
    apply_fn,
    count_params,
    create_model,
    init_params,
    with_params,
)
from lit_jax.models.registry import model_config, sizes
from lit_jax.models.transformer.sizes import BACKBONES

TINY = {"input_size": 4, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
TINY |= {"num_classes": 5, "kernel_size": 3}

# Official counts of DiT, with the position table: /2 at 256 and 512 pixels, /4 and /8 at 256.
DIT_COUNTS = {
    "S": (32_963_360, 33_258_272, 32_945_024, 33_148_160),
    "B": (130_512_416, 131_102_240, 130_475_648, 130_881_536),
    "L": (458_102_816, 458_889_248, 458_053_760, 458_594_816),
    "XL": (675_129_632, 676_014_368, 675_074_432, 675_683_072),
}
# LiT /2 at 256 pixels.
LIT_COUNTS = {"S": 33_023_264, "B": 130_592_288, "L": 458_262_560, "XL": 675_339_296}
HEADS = {"S": (6, 2), "B": (12, 3), "L": (16, 4), "XL": (16, 4)}


def count_with_table(config: DiTConfig) -> int:
    params = abstract_params(config)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    return count_params(params) + config.num_tokens * config.hidden_size


@pytest.mark.parametrize("size", DIT_COUNTS)
def test_dit_parameter_counts(size: str) -> None:
    cases = [(2, 32), (2, 64), (4, 32), (8, 32)]
    counts = [
        count_with_table(model_config(f"DiT-{size}/{patch}", input_size=side))
        for patch, side in cases
    ]
    assert counts == list(DIT_COUNTS[size])


@pytest.mark.parametrize("size", LIT_COUNTS)
def test_lit_parameter_counts(size: str) -> None:
    """As DiT plus 26 d per block: the 5 x 5 filters and biases of one head of width d."""
    assert count_with_table(model_config(f"LiT-{size}/2")) == LIT_COUNTS[size]
    dit, lit = (model_config(f"{family}-{size}/8") for family in ("DiT", "LiT"))
    extra = 26 * lit.depth * lit.hidden_size // lit.num_heads
    assert count_with_table(lit) - count_with_table(dit) == extra


def test_lit_at_512_pixels() -> None:
    assert count_with_table(model_config("LiT-XL/2", input_size=64)) == 676_224_032


def test_every_named_size() -> None:
    names = {f"{f}-{s}/{p}" for f in ("DiT", "LiT") for s in BACKBONES for p in (2, 4, 8)}
    assert names < set(sizes())
    for name in names:
        config = model_config(name)
        size, patch = name.split("-")[1].split("/")
        linear = name.startswith("LiT")
        assert config.family == name[:3] and config.mixer == ("linear" if linear else "softmax")
        assert config.num_heads == HEADS[size][linear] and config.patch_size == int(patch)
        assert (config.input_size, config.in_channels, config.num_classes) == (32, 4, 1000)
        assert config.qkv_bias and config.learn_sigma and config.mlp_ratio == 4.0
        assert config.kernel_size == 5 and config.kernel_fn == "relu"


def test_parameter_paths() -> None:
    """The published tree: blocks stacked on a leading axis of length `depth`."""
    config = model_config("LiT", **TINY)
    paths = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(abstract_params(config))
    }
    D, L = 16, 2
    expected = {
        "x_embedder/kernel": (12, D),
        "x_embedder/bias": (D,),
        "t_embedder/fc1/kernel": (256, D),
        "t_embedder/fc1/bias": (D,),
        "t_embedder/fc2/kernel": (D, D),
        "t_embedder/fc2/bias": (D,),
        "y_embedder/embedding": (6, D),
        "blocks/attn/dwc/kernel": (L, 3, 3, 8),
        "blocks/attn/dwc/bias": (L, 8),
        "blocks/mlp/fc1/kernel": (L, D, 4 * D),
        "blocks/mlp/fc1/bias": (L, 4 * D),
        "blocks/mlp/fc2/kernel": (L, 4 * D, D),
        "blocks/mlp/fc2/bias": (L, D),
        "blocks/adaln/kernel": (L, D, 6 * D),
        "blocks/adaln/bias": (L, 6 * D),
        "final_layer/adaln/kernel": (D, 2 * D),
        "final_layer/adaln/bias": (2 * D,),
        "final_layer/linear/kernel": (D, 24),
        "final_layer/linear/bias": (24,),
    }
    for name in ("q", "k", "v", "out"):
        expected |= {f"blocks/attn/{name}/kernel": (L, D, D), f"blocks/attn/{name}/bias": (L, D)}
    assert paths == expected


@pytest.mark.parametrize(
    ("fields", "missing", "added"),
    [
        ({"mixer": "softmax"}, {"dwc/kernel", "dwc/bias"}, set()),
        ({"kernel_size": None}, {"dwc/kernel", "dwc/bias"}, set()),
        ({"qkv_bias": False}, {"q/bias", "k/bias", "v/bias"}, set()),
        ({"mixer": "focused"}, set(), {"scale", "position"}),
    ],
    ids=["softmax", "no_convolution", "no_bias", "focused"],
)
def test_paths_of_mixers(fields: dict, missing: set[str], added: set[str]) -> None:
    def paths(**fields) -> set[str]:
        attention = abstract_params(model_config("LiT", **TINY | fields))["blocks"]["attn"]
        return {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(attention)}

    usual, ours = paths(), paths(**fields)
    assert usual - ours == missing and ours - usual == added


def test_overrides() -> None:
    config = model_config("LiT-S/2", input_size=(16, 32), num_classes=10, num_heads=6)
    assert (config.depth, config.grid, config.num_heads) == (12, (8, 16), 6)
    assert model_config("DiT", input_size=[16, 32]).input_size == (16, 32)
    assert model_config("DiT", mlp_ratio=2).mlp_ratio == 2.0
    family = model_config("DiT", hidden_size=96, depth=3, num_heads=4, patch_size=2, input_size=16)
    assert (family.family, family.mixer, family.depth) == ("DiT", "softmax", 3)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("LiT-XL/3", {}, r"unknown model 'LiT-XL/3'; did you mean 'LiT-XL/\d'\?.*DiT-B/2.*LiT-S/8"),
        ("Lit", {}, r"unknown model 'Lit'; did you mean 'LiT'"),
        (
            "nothing alike",
            {},
            r"unknown model 'nothing alike' \(known: AutoencoderKL, CLEAR, CLEAR-B/2",
        ),
        (
            "DiT-S/2",
            {"hiden_size": 8},
            r"argument of DiT-S/2 'hiden_size'; did you mean 'hidden_siz",
        ),
        ("DiT-S/2", {"num_heads": 5}, r"hidden_size 384 is not divisible by num_heads 5"),
        ("LiT-S/8", {"input_size": 28}, r"input_size 28 is not a multiple of patch_size 8"),
        ("DiT", {"mlp_ratio": "4"}, r"DiT\.mlp_ratio is '4' \(str\); it must be float"),
        ("LiT", {"kernel_size": "x"}, r"LiT\.kernel_size is 'x' \(str\); it must be int \| None"),
        ("DiT-S/2", {"num_classes": 2.5}, r"DiT-S/2\.num_classes is 2\.5 \(float\); it must be"),
        ("DiT", {"input_size": [16, "8"]}, r"DiT\.input_size is \[16, '8'\] \(list\)"),
        ("DiT", {"dtype": "foo"}, r"unknown dtype 'foo' \(known: bfloat16, float32\)"),
        ("DiT", {"dtype": jnp.int8}, r"unknown dtype 'int8' \(known: bfloat16, float32\)"),
        ("DiT", {"dtype": None}, r"unknown dtype 'float64'.*known: bfloat16, float32"),
        ("DiT", {"dtype": 3}, r"unknown dtype 3 \(known: bfloat16, float32\)"),
    ],
)
def test_errors(name: str, fields: dict, message: str) -> None:
    for build in (model_config, create_model):
        with pytest.raises(ValueError, match=message):
            build(name, **fields)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (jnp.bfloat16, "bfloat16"),
        (jnp.dtype("bfloat16"), "bfloat16"),
        ("bfloat16", "bfloat16"),
        (jnp.float32, "float32"),
        (np.float32, "float32"),
        (np.dtype("float32"), "float32"),
    ],
    ids=repr,
)
def test_ways_to_say_dtype(dtype: object, name: str) -> None:
    assert model_config("LiT", dtype=dtype) == model_config("LiT", dtype=name)
    model = nnx.eval_shape(lambda: create_model("LiT", dtype=dtype, **TINY))
    assert model.config.dtype == name


def test_model_and_functional_view_agree() -> None:
    """create_model(seed), init_params(key(seed)) and apply_fn are one network."""
    config = model_config("LiT", **TINY)
    params = init_params(config, jax.random.key(3))
    model = create_model("LiT", seed=3, **TINY)
    assert model.config == config
    np.testing.assert_array_equal(model.x_embedder.kernel[...], params["x_embedder"]["kernel"])
    np.testing.assert_array_equal(
        model.blocks.attn.q.kernel[...], params["blocks"]["attn"]["q"]["kernel"]
    )
    params["final_layer"]["linear"]["bias"] = jnp.ones((24,))
    x, t, y = jnp.zeros((1, 4, 4, 3)), jnp.array([5]), jnp.array([3])
    out = apply_fn(config)(params, x, t, y)
    np.testing.assert_array_equal(out, with_params(config, params)(x, t, y))
    assert (np.asarray(out) == 1).all()
    assert not np.array_equal(
        params["x_embedder"]["kernel"],
        init_params(config, jax.random.key(4))["x_embedder"]["kernel"],
    )


def test_parameters_of_another_tree() -> None:
    """Every misfit is named at once: missing, unknown, of another shape."""
    config = model_config("LiT", **TINY)
    params = abstract_params(config)
    params["z_embedder"] = params.pop("t_embedder")
    params["x_embedder"]["bias"] = jnp.zeros((8,))
    with pytest.raises(ValueError) as caught:
        with_params(config, params)
    lines = str(caught.value).splitlines()[1:]
    for part in ("fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias"):
        assert f"  t_embedder/{part} is missing" in lines
        assert f"  z_embedder/{part} does not belong to this model" in lines
    assert "  x_embedder/bias has shape (8,), expected (16,)" in lines
    assert len(lines) == 9
