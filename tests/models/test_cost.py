"""Closed-form costs against the printed numbers of the DiT and LiT papers."""

from __future__ import annotations

import pytest

from lit_jax.config import DiTConfig
from lit_jax.models.cost import (
    attention_macs,
    forward_macs,
    multiplied_attention_macs,
    train_step_flops,
)
from lit_jax.models.zoo import model_config

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
