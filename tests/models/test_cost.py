"""Closed-form costs against the printed numbers of the DiT and LiT papers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lit_jax.models import functional
from lit_jax.models.attention import mixer_class
from lit_jax.models.attention.circle import attended_share, window_keys, window_pairs
from lit_jax.models.attention.window import circle_mask
from lit_jax.models.cost import (
    attention_macs,
    forward_components,
    forward_macs,
    multiplied_attention_macs,
    parameter_components,
    train_step_flops,
)
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.registry import model_config
from lit_jax.models.transformer.macs import COMPONENTS
from support.products import traced_products

# GMACs of all attention layers at 256 tokens: softmax, and linear by number of heads.
SOFTMAX = {"S": 2.416, "B": 8.456, "L": 28.991, "XL": 42.279}
LINEAR = {
    "S": {1: 3.202, 2: 2.522, 3: 2.296, 6: 2.069, 48: 1.871, 96: 1.857},
    "B": {1: 12.745, 2: 10.027, 3: 9.121, 12: 7.762, 96: 7.366, 192: 7.337},
    "L": {1: 45.261, 2: 35.597, 4: 30.765, 16: 27.141},
    "XL": {1: 66.804, 2: 52.534, 4: 45.400, 16: 40.049},
}
# GMACs of the whole network at 256 pixels, as printed by the DiT paper.
FORWARD = {
    "S/8": 0.36,
    "S/4": 1.41,
    "S/2": 6.06,
    "B/8": 1.42,
    "B/4": 5.56,
    "B/2": 23.01,
    "L/8": 5.01,
    "L/4": 19.70,
    "L/2": 80.71,
    "XL/8": 7.39,
    "XL/4": 29.05,
    "XL/2": 118.64,
}


@pytest.mark.parametrize("size", SOFTMAX)
def test_attention(size: str) -> None:
    giga = attention_macs(model_config(f"DiT-{size}/2")) / 1e9
    assert giga == pytest.approx(SOFTMAX[size], abs=6e-4)
    for heads, expected in LINEAR[size].items():
        config = model_config(f"LiT-{size}/2", num_heads=heads)
        assert attention_macs(config) / 1e9 == pytest.approx(expected, abs=6e-4)


def test_linear_attention_wins_at_many_tokens() -> None:
    dit, lit = (model_config(name, input_size=128) for name in ("DiT-XL/2", "LiT-XL/2"))
    assert dit.num_tokens == lit.num_tokens == 4096
    assert attention_macs(dit) / 1e9 == pytest.approx(1691.1, abs=0.06)
    assert attention_macs(lit) / 1e9 == pytest.approx(726.4, abs=0.06)


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name: str) -> None:
    """Within 1%, or half a unit of the printed last place."""
    expected = FORWARD[name]
    macs = forward_macs(model_config(f"DiT-{name}"))
    assert macs / 1e9 == pytest.approx(expected, abs=max(0.01 * expected, 0.005))


def test_forward_at_512_pixels() -> None:
    macs = forward_macs(model_config("DiT-XL/2", input_size=64))
    assert macs / 1e9 == pytest.approx(524.6, rel=0.01)


def test_small_network_by_hand() -> None:
    """2 x 3 tokens, width 8, every product counted."""
    config = DiTConfig(
        mixer="linear",
        input_size=(4, 6),
        patch_size=2,
        in_channels=3,
        hidden_size=8,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        kernel_size=3,
    )
    # Algorithm 1 head by head: k^T v and q S with 4 x 4 states, q . mean k, 3 x 3 filters.
    algorithm = 4 * 6 * 8 * 8 + 2 * (2 * 6 * 4 * 4 + 6 * 4) + 9 * 6 * 8
    printed = 4 * 6 * 64 + 6 * 8 + 3 * 6 * 64 // 2 + 9 * 6 * 8
    block = algorithm + 2 * 6 * 8 * 16 + 8 * 48
    ends = 6 * 12 * 8 + 256 * 8 + 64 + 8 * 16 + 6 * 8 * 24
    assert attention_macs(config) == 2 * printed
    assert multiplied_attention_macs(config) == 2 * algorithm
    assert forward_macs(config) == 2 * block + ends


def test_softmax_attention_has_one_count() -> None:
    config = model_config("DiT-S/2")
    assert multiplied_attention_macs(config) == attention_macs(config)
    lit = model_config("LiT-S/2")
    assert attention_macs(lit) - multiplied_attention_macs(lit) == 12 * 256 * 384**2 // 2


def test_no_convolution_costs_nothing() -> None:
    config = model_config("LiT-S/2", kernel_size=None)
    convolution = 25 * 256 * 384 * 12
    assert attention_macs(model_config("LiT-S/2")) - attention_macs(config) == convolution
    focused = model_config("LiT-S/2", mixer="focused")
    assert attention_macs(focused) == attention_macs(model_config("LiT-S/2"))


def test_train_step() -> None:
    """Two operations per product computed; three passes of the student, one of the teacher."""
    student, teacher = model_config("LiT-S/2"), model_config("DiT-XL/2")
    alone = train_step_flops(student, 8)
    dit_like = forward_macs(model_config("DiT-S/2")) - attention_macs(model_config("DiT-S/2"))
    assert forward_macs(student) - multiplied_attention_macs(student) == dit_like
    assert alone == 2 * 8 * 3 * forward_macs(student)
    assert train_step_flops(student, 8, teacher) - alone == 2 * 8 * forward_macs(teacher)


TINY = {"hidden_size": 24, "depth": 2, "num_heads": 2, "input_size": (10, 22), "mlp_ratio": 2.0}
TEXT = {"caption_channels": 10, "model_max_length": 7}
COMPRESSED = {"scale_factor": 2, "kv_compress_layer": (1,)}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("DiT", {}),
    "linear": ("LiT", {}),
    "focused": ("LiT", {"mixer": "focused"}),
    "sana": ("LiT", {"mixer": "sana", "kernel_size": None, "num_heads": 6}),
    "unconditional": ("DiT", {"num_classes": 0}),
    "gated": ("DiG", {}),
    "gated, unconditional": ("DiG", {"num_classes": 0, "expand_v": 2.0}),
    "gated, U-shaped": ("DiG", {"skip": True, "depth": 8}),
    "text": ("PixArt", TEXT),
    "text, linear": ("PixArt", TEXT | {"mixer": "linear"}),
    "text, micro": ("PixArt", TEXT | {"micro_condition": True}),
    **{
        f"text, {sampling}": ("PixArt", TEXT | {"kv_compress_config": COMPRESSED | named})
        for sampling in ("conv", "ave", "uniform", "uniform_every")
        for named in [{"sampling": sampling}]
    },
}


@pytest.mark.parametrize("case", NETWORKS)
def test_closed_forms_are_what_the_program_multiplies(case: str) -> None:
    """Every product of matrices, exactly. Filters are sums of shifted products and no such ones;
    nor is what a gated query makes of its own key."""
    name, overrides = NETWORKS[case]
    config = model_config(name, **TINY | overrides)
    macs = forward_components(config)
    elementwise = macs["convolution"]
    if config.mixer == "gated":
        elementwise += config.depth * math.ceil(config.num_tokens / 64) * 64 * config.key_dim
    assert traced_products(config) == forward_macs(config) - elementwise
    assert tuple(macs) == COMPONENTS and sum(macs.values()) == forward_macs(config)


@pytest.mark.parametrize("case", [*NETWORKS, "window, pooled"])
def test_parameters_by_component(case: str) -> None:
    """Each parameter belongs to one component, and to the right one where all are known."""
    pooled = ("CLEAR", {"down_factor": 2, "input_size": 8})
    name, overrides = (NETWORKS | {"window, pooled": pooled})[case]
    config = model_config(name, **TINY | overrides)
    counts = parameter_components(config)
    assert sum(counts.values()) == functional.count_params(functional.abstract_params(config))
    filters = {"linear": 2 * (25 * 12 + 12), "focused": 2 * (25 * 12 + 12), "window": 2 * 4}
    filters |= {"gated": config.depth * (9 * 24 + 24)}
    if case == "text, conv":
        filters |= {"softmax": 4 * 24 + 24 + 2 * 24}
    assert counts["convolution"] == filters.get(config.mixer, 0)
    assert bool(counts["skip"]) == ("U-shaped" in case)
    assert bool(counts["cross_attention"]) == case.startswith("text")


@pytest.mark.parametrize(
    ("radius", "keys"), [(1, 1), (2, 9), (3, 25), (4, 45), (8, 193), (16, 793), (32, 3205)]
)
def test_keys_of_a_circle(radius: int, keys: int) -> None:
    """Offsets at a distance strictly below the radius; most of them beyond a small image."""
    assert window_keys(radius) == keys
    side = 2 * radius + 9
    inside = (side * side) * keys
    assert window_pairs((side, side), radius) <= inside
    assert window_pairs((1, 1), radius) == 1


@pytest.mark.parametrize(("grid", "radius"), [((7, 12), 3), ((5, 4), 8), ((1, 9), 2)])
def test_borders_are_counted_exactly(grid: tuple[int, int], radius: int) -> None:
    assert window_pairs(grid, radius) == np.count_nonzero(circle_mask(grid, radius))


def test_window_macs() -> None:
    """Softmax's projections; products with the keys of the circle and with the pooled ones."""
    config = model_config("CLEAR-S/2", input_size=128, window_size=8)
    softmax, window = (mixer_class(m).macs(config) for m in ("softmax", "window"))
    assert window["projections"] == softmax["projections"] and not window["convolution"]
    # CLEAR's grid of 64 x 64 tokens: 4.2% of all pairs with borders, 4.7% without.
    assert window["attention"] / softmax["attention"] == pytest.approx(0.0423, abs=5e-5)
    assert attended_share(8, 64 * 64) == pytest.approx(0.0471, abs=5e-5)
    pooled = mixer_class("window").macs(model_config("CLEAR-S/2", input_size=128, down_factor=4))
    assert pooled["attention"] - window["attention"] == softmax["attention"] // 16
    assert pooled["convolution"] == 2 * 64 * 64 * 384


def test_claim_of_clear() -> None:
    """99.5% fewer keys at 8192 pixels with r = 16 and 512 text tokens: (793 + 512) / (512^2 +
    512)."""
    assert attended_share(16, 512**2, 512) == (793 + 512) / (512**2 + 512)
    assert f"{1 - attended_share(16, 512**2, 512):.1%}" == "99.5%"
    assert attended_share(32, 100) == 1


def test_gated_attention_by_hand() -> None:
    """S/2 at 256 tokens: 4 chunks of 64; keys of 6 x 32 channels, values of 6 x 64."""
    macs = mixer_class("gated").macs(model_config("DiG-S/2"))
    states = 2 * 6 * 32 * 64
    within = 192 * 65 // 2 + 64 * 384
    assert macs["attention"] == 256 * (states + within)
    assert macs["projections"] == 256 * (2 * 384 * 192 + 3 * 384 * 384 + 16 * (384 + 192))
    assert macs["convolution"] == 9 * 256 * 384
    assert not mixer_class("gated").macs(model_config("DiG-S/2", dw_conv=False))["convolution"]
    one_token_more = mixer_class("gated").macs(model_config("DiG-S/2", input_size=(2, 2 * 65)))
    assert one_token_more["attention"] == 128 * (states + within)
