"""The LiT objective: values, weights, gradients, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.config import DistillConfig
from lit_jax.diffusion.gaussian import create_process, q_sample
from lit_jax.objectives import (
    VARIANCE_READINGS,
    attention_distillation,
    diffusion_loss,
    hybrid_distillation,
    hybrid_objective,
    noise_distillation,
    variance_distillation,
)

PROCESS = create_process()
I_B = jnp.array([0, 500, 999])
C = 4
SETTINGS = DistillConfig(teacher="teacher", noise_weight=0.5, variance_weight=0.05)


def sines(frequency: float, channels: int = 2 * C) -> jax.Array:
    """sin(frequency * k) at flat NCHW index k of [3, channels, 8, 8], as NHWC."""
    k = np.arange(3 * channels * 64).reshape(3, channels, 8, 8)
    return jnp.asarray(np.moveaxis(np.sin(frequency * k), 1, -1), jnp.float32)


STUDENT, TEACHER = sines(0.11), sines(0.17)
X_START, NOISE = sines(0.37, C), sines(0.53, C)
REST = (X_START, q_sample(PROCESS, X_START, I_B, NOISE), I_B, NOISE)


def test_noise_distillation_has_the_known_value() -> None:
    loss, metrics = noise_distillation(PROCESS, STUDENT, TEACHER, C)
    assert loss == pytest.approx(0.932168722, rel=1e-5)
    assert metrics == {"noise_distillation": loss}


@pytest.mark.parametrize(
    ("reading", "expected", "tolerance"),
    [("raw", 1.089704275, 1e-5), ("log_variance", 0.0320666, 1e-4), ("variance", 1.8618e-10, 1e-3)],
)
def test_variance_distillation_has_the_known_values(
    reading: str, expected: float, tolerance: float
) -> None:
    loss, metrics = variance_distillation(PROCESS, STUDENT, TEACHER, I_B, C, reading)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert metrics == {"variance_distillation": loss}


def test_the_raw_reading_is_the_default() -> None:
    default, _ = variance_distillation(PROCESS, STUDENT, TEACHER, I_B, C)
    raw, _ = variance_distillation(PROCESS, STUDENT, TEACHER, I_B, C, "raw")
    assert default == raw and DistillConfig().variance_reading == "raw"


@pytest.mark.parametrize("reading", VARIANCE_READINGS)
def test_the_total_is_the_weighted_sum_of_the_terms(reading: str) -> None:
    settings = dataclasses.replace(SETTINGS, variance_reading=reading, variance_weight=0.7)
    loss, metrics = hybrid_objective(PROCESS, settings)(STUDENT, TEACHER, *REST)
    base, _ = diffusion_loss(PROCESS, STUDENT, *REST)
    noise, _ = noise_distillation(PROCESS, STUDENT, TEACHER, C)
    variance, _ = variance_distillation(PROCESS, STUDENT, TEACHER, I_B, C, reading)
    assert loss == pytest.approx(float(base + 0.5 * noise + 0.7 * variance), rel=1e-6)
    assert metrics["loss"] == loss
    assert base == pytest.approx(float(metrics["mse"] + metrics["vb"]), rel=1e-6)
    assert set(metrics) == {"loss", "mse", "vb", "noise_distillation", "variance_distillation"}
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


def test_a_weight_of_zero_removes_its_term() -> None:
    settings = dataclasses.replace(SETTINGS, variance_weight=0.0)
    _, metrics = hybrid_objective(PROCESS, settings)(STUDENT, TEACHER, *REST)
    assert "variance_distillation" not in metrics and "noise_distillation" in metrics
    settings = dataclasses.replace(SETTINGS, noise_weight=0.0)
    _, metrics = hybrid_objective(PROCESS, settings)(STUDENT, TEACHER, *REST)
    assert "noise_distillation" not in metrics and "variance_distillation" in metrics


def test_without_a_teacher_it_is_the_diffusion_loss() -> None:
    objective = hybrid_objective(PROCESS, DistillConfig(teacher=""))
    loss, metrics = objective(STUDENT, None, *REST)
    assert loss == diffusion_loss(PROCESS, STUDENT, *REST)[0]
    assert set(metrics) == {"loss", "mse", "vb"}


def test_gradients_reach_the_student_only_and_only_the_channels_of_their_term() -> None:
    def loss(settings: DistillConfig) -> Any:
        def distilled(student: jax.Array, teacher: jax.Array) -> jax.Array:
            return hybrid_distillation(PROCESS, student, teacher, I_B, C, settings)[0]

        return jax.grad(distilled, argnums=(0, 1))(STUDENT, TEACHER)

    student, teacher = loss(SETTINGS)
    assert not teacher.any() and student.any()
    noise_only, _ = loss(dataclasses.replace(SETTINGS, variance_weight=0.0))
    assert noise_only[..., :C].any() and not noise_only[..., C:].any()
    variance_only, _ = loss(dataclasses.replace(SETTINGS, noise_weight=0.0))
    assert variance_only[..., C:].any() and not variance_only[..., :C].any()
    expected = 2 * 0.5 * (STUDENT - TEACHER)[..., :C] / X_START.size
    np.testing.assert_allclose(noise_only[..., :C], expected, rtol=1e-5, atol=1e-9)


def test_a_process_with_fixed_variance_distils_noise_only() -> None:
    process = create_process(var_type="fixed_large")
    settings = dataclasses.replace(SETTINGS, variance_weight=0.0)
    student, teacher = STUDENT[..., :C], TEACHER[..., :C]
    _, metrics = hybrid_objective(process, settings)(student, teacher, *REST)
    assert set(metrics) == {"loss", "mse", "noise_distillation"}
    with pytest.raises(ValueError, match="'fixed_large'.*variance_weight to 0"):
        hybrid_objective(process, SETTINGS)


def test_mistakes_are_refused_before_anything_compiles() -> None:
    with pytest.raises(ValueError, match="did you mean 'raw'.*log_variance, raw, variance"):
        hybrid_objective(PROCESS, dataclasses.replace(SETTINGS, variance_reading="raww"))
    with pytest.raises(ValueError, match="given none teacher output, but distill.teacher is"):
        hybrid_objective(PROCESS, SETTINGS)(STUDENT, None, *REST)
    with pytest.raises(ValueError, match="given one teacher output, but distill.teacher is ''"):
        hybrid_objective(PROCESS, DistillConfig(teacher=""))(STUDENT, TEACHER, *REST)
    with pytest.raises(ValueError, match="returned 4 channels for images of 4"):
        hybrid_objective(PROCESS, SETTINGS)(STUDENT, TEACHER[..., :C], *REST)


def heads(frequency: float) -> jax.Array:
    """Attention outputs of 6 layers, 2 images, 3 tokens, 5 channels."""
    return jnp.asarray(np.sin(frequency * np.arange(180)).reshape(6, 2, 3, 5), jnp.float32)


ATTENTION = DistillConfig("teacher", noise_weight=0.0, variance_weight=0.0, attention_weight=0.5)


def test_attention_distillation_is_the_mean_over_the_selected_layers() -> None:
    student, teacher = heads(0.3), heads(0.5)
    loss, metrics = attention_distillation(student, teacher, 4)
    squares = np.square(np.asarray(student, np.float64) - np.asarray(teacher))
    of_layers = [float(squares[layer].mean()) for layer in range(6)]
    assert loss == pytest.approx((of_layers[0] + of_layers[4]) / 2, rel=1e-5)
    assert metrics == {"attention_distillation": loss}
    assert attention_distillation(student, teacher, 1)[0] == pytest.approx(np.mean(of_layers))
    assert attention_distillation(student, teacher, 99)[0] == pytest.approx(of_layers[0])
    # By hand: a difference of 2 in one of 3 tokens of layer 0, of layers 0 and 4.
    moved = teacher.at[0, :, 1].add(2.0)
    assert attention_distillation(moved, teacher, 4)[0] == pytest.approx(4 / 3 / 2, rel=1e-6)
    assert attention_distillation(moved, teacher.astype(jnp.bfloat16), 4)[0].dtype == jnp.float32


@pytest.mark.parametrize("every", [1, 2, 4])
def test_attention_distillation_of_the_teacher_itself_is_zero(every: int) -> None:
    """Where it is smallest: without a gradient."""
    loss, gradient = jax.value_and_grad(
        lambda student: attention_distillation(student, heads(0.5), every)[0]
    )(heads(0.5))
    assert loss == 0 and not gradient.any()


def test_attention_distillation_reaches_the_selected_layers_of_the_student_only() -> None:
    def loss(student: Any, teacher: Any) -> jax.Array:
        return hybrid_distillation(PROCESS, student, teacher, I_B, C, ATTENTION)[0]

    student, teacher = jax.grad(loss, argnums=(0, 1))((STUDENT, heads(0.3)), (TEACHER, heads(0.5)))
    assert not any(leaf.any() for leaf in teacher) and not student[0].any()
    assert [bool(layer.any()) for layer in student[1]] == [True] + 3 * [False] + [True, False]
    expected = 0.5 * 2 * (heads(0.3) - heads(0.5))[::4] / 60
    np.testing.assert_allclose(student[1][::4], expected, rtol=1e-5, atol=1e-9)


def test_attention_distillation_is_added_with_its_weight() -> None:
    settings = dataclasses.replace(SETTINGS, attention_weight=0.7, attention_every=2)
    student, teacher = (STUDENT, heads(0.3)), (TEACHER, heads(0.5))
    loss, metrics = hybrid_objective(PROCESS, settings)(student, teacher, *REST)
    without, rest = hybrid_objective(PROCESS, SETTINGS)(STUDENT, TEACHER, *REST)
    term, logged = attention_distillation(heads(0.3), heads(0.5), 2)
    assert loss == pytest.approx(float(without + 0.7 * term), rel=1e-6)
    assert metrics == rest | logged | {"loss": loss}


def test_attention_outputs_that_do_not_fit_are_refused() -> None:
    objective = hybrid_objective(PROCESS, ATTENTION)
    with pytest.raises(
        ValueError, match="given no attention outputs, but .*attention_weight is 0.5"
    ):
        objective((STUDENT, heads(0.3)), TEACHER, *REST)
    with pytest.raises(ValueError, match="given attention outputs, but .*attention_weight is 0.0"):
        hybrid_objective(PROCESS, SETTINGS)((STUDENT, heads(0.3)), TEACHER, *REST)
    with pytest.raises(ValueError, match=r"student have shape \(6, 2, 3, 5\), .* \(3, 2, 3, 5\)"):
        objective((STUDENT, heads(0.3)), (TEACHER, heads(0.5)[:3]), *REST)
