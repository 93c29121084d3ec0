"""Training objective of LiT (Eq. 5-7 of the paper): diffusion loss plus hybrid distillation.

L = L_simple + lambda_1 L_noise + lambda_2 L_var + lambda_3 L_attention. Each term is a pure
function that returns (loss, metrics), both means over the batch; `hybrid_objective` returns their
sum. L_simple is DiT's loss, the mean squared error plus the variational term: the student learns
its variance too, and with lambda_2 = 0 no other term trains those channels. L_attention is the term
of CLEAR; in LiT's recipe lambda_3 is 0.

Shape letters: B images, H height, W width, C image channels, K channels of a network output,
L layers, N tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lit_jax.config import DistillConfig, unknown_name
from lit_jax.diffusion.gaussian import GaussianProcess, learned_range_log_variance, split_output
from lit_jax.diffusion.losses import training_losses

Metrics = dict[str, jax.Array]
Term = tuple[jax.Array, Metrics]
# What a network returns [B, H, W, K], or that and the attention outputs of its layers, which an
# objective with L_attention needs: [L, B, N, D], before their projection.
Output = jax.Array | tuple[jax.Array, jax.Array]
# (output of the student, of the teacher or None, x_start, x_t, step indices, noise) -> (loss,
# metrics)
Objective = Callable[[Output, Output | None, jax.Array, jax.Array, jax.Array, jax.Array], Term]


def diffusion_loss(
    process: GaussianProcess,
    model_out_BxHxWxK: jax.Array,
    x_start_BxHxWxC: jax.Array,
    x_t_BxHxWxC: jax.Array,
    i_B: jax.Array,
    noise_BxHxWxC: jax.Array,
) -> Term:
    """Return L_simple of LiT's Eq. 5 in the form of DiT: mse, plus vb in bits if the variance is
    learned.

    i: int [B], step indices of `process`. Metrics: "mse" and, where it exists, "vb".
    """
    losses = training_losses(
        process, model_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, noise_BxHxWxC
    )
    means = {name: jnp.mean(values_B) for name, values_B in losses.items()}
    return means.pop("loss"), means


def noise_distillation(
    process: GaussianProcess,
    student_out_BxHxWxK: jax.Array,
    teacher_out_BxHxWxK: jax.Array,
    channels: int,
) -> Term:
    """Return L_noise, LiT Eq. 6: mean over B, H, W, C of (epsilon_teacher - epsilon_student)^2.

    channels: number of image channels C.
    """
    student_BxHxWxC, _ = split_output(process, student_out_BxHxWxK, channels)
    teacher_BxHxWxC, _ = split_output(process, teacher_out_BxHxWxK, channels)
    loss = jnp.mean(jnp.square(teacher_BxHxWxC - student_BxHxWxC))
    return loss, {"noise_distillation": loss}


def raw_reading(process: GaussianProcess, v_BxHxWxC: jax.Array, i_B: jax.Array) -> jax.Array:
    """Return the variance channels as the network returns them."""
    del process, i_B
    return v_BxHxWxC


def variance_reading(process: GaussianProcess, v_BxHxWxC: jax.Array, i_B: jax.Array) -> jax.Array:
    """Return the variance Sigma itself, iDDPM Eq. 15."""
    return jnp.exp(learned_range_log_variance(process, v_BxHxWxC, i_B))


# What "Sigma" means in Eq. 7, as a function (process, variance channels, step indices).
VARIANCE_READINGS: dict[str, Callable[[GaussianProcess, jax.Array, jax.Array], jax.Array]] = {
    "raw": raw_reading,
    "log_variance": learned_range_log_variance,
    "variance": variance_reading,
}


def variance_distillation(
    process: GaussianProcess,
    student_out_BxHxWxK: jax.Array,
    teacher_out_BxHxWxK: jax.Array,
    i_B: jax.Array,
    channels: int,
    reading: str = "raw",
) -> Term:
    """Return L_var, LiT Eq. 7: mean over B, H, W, C of (Sigma_teacher - Sigma_student)^2.

    The paper does not specify in which form Sigma is compared, and has no public code. "raw"
    compares the network's variance channels v, which have the same unit scale at every t. It is the
    default because the other readings have almost no gradient: Sigma itself ("variance") is at
    most 0.02, so that two unrelated outputs of unit scale differ by 2e-10 and the paper's
    lambda_2 = 0.05 would have no numerical effect, while the paper reports an effect on FID (51.13
    to 50.79). log Sigma ("log_variance") is v times (log beta - log beta~) / 2, which is
    0.30 at t = 0 and 0.39 at t = 1, but 0.009 at t = 100 and 4e-7 at t = 999: only the first few
    timesteps would contribute.
    Raises ValueError for an unknown reading, or if the process does not learn its variance.
    """
    _check_reading(process, reading)
    read = VARIANCE_READINGS[reading]
    _, student_v_BxHxWxC = split_output(process, student_out_BxHxWxK, channels)
    _, teacher_v_BxHxWxC = split_output(process, teacher_out_BxHxWxK, channels)
    assert student_v_BxHxWxC is not None and teacher_v_BxHxWxC is not None  # checked above
    difference_BxHxWxC = read(process, teacher_v_BxHxWxC, i_B) - read(
        process, student_v_BxHxWxC, i_B
    )
    loss = jnp.mean(jnp.square(difference_BxHxWxC))
    return loss, {"variance_distillation": loss}


def attention_distillation(
    student_LxBxNxD: jax.Array, teacher_LxBxNxD: jax.Array, every: int
) -> Term:
    """Return L_attention of CLEAR (Liu et al. 2024): mean squared difference of the attention
    outputs of the layers 0, every, 2 every, ..., in float32.

    Outputs of a layer are those of its heads side by side, before the output projection. The mean
    over the layers of their means over B, N and D is one mean. Raises ValueError for outputs of
    unequal shapes.
    """
    if student_LxBxNxD.shape != teacher_LxBxNxD.shape:
        raise ValueError(
            f"attention outputs [layers, images, tokens, channels] of the student have shape"
            f" {student_LxBxNxD.shape}, those of the teacher {teacher_LxBxNxD.shape}"
        )
    student, teacher = (
        heads[::every].astype(jnp.float32) for heads in (student_LxBxNxD, teacher_LxBxNxD)
    )
    loss = jnp.mean(jnp.square(teacher - student))
    return loss, {"attention_distillation": loss}


@dataclass(frozen=True)
class Comparison:
    """Outputs of both networks on one batch, as the distillation terms need them. The attention
    outputs are None unless `settings.compares_attention`."""

    process: GaussianProcess
    student_BxHxWxK: jax.Array
    teacher_BxHxWxK: jax.Array
    student_attention_LxBxNxD: jax.Array | None
    teacher_attention_LxBxNxD: jax.Array | None
    i_B: jax.Array
    channels: int
    settings: DistillConfig


def _noise_term(c: Comparison) -> Term:
    return noise_distillation(c.process, c.student_BxHxWxK, c.teacher_BxHxWxK, c.channels)


def _variance_term(c: Comparison) -> Term:
    outputs = c.student_BxHxWxK, c.teacher_BxHxWxK
    return variance_distillation(
        c.process, *outputs, c.i_B, c.channels, c.settings.variance_reading
    )


def _attention_term(c: Comparison) -> Term:
    student, teacher = c.student_attention_LxBxNxD, c.teacher_attention_LxBxNxD
    assert student is not None and teacher is not None  # checked by `_outputs`
    return attention_distillation(student, teacher, c.settings.attention_every)


DISTILLATION: dict[str, Callable[[Comparison], Term]] = {
    "noise_weight": _noise_term,
    "variance_weight": _variance_term,
    "attention_weight": _attention_term,
}
"""Weight of a term, a field of `DistillConfig` -> the term. To add a term: write the function, add
a row here and the field there."""


def hybrid_distillation(
    process: GaussianProcess,
    student: Output,
    teacher: Output,
    i_B: jax.Array,
    channels: int,
    settings: DistillConfig,
) -> Term:
    """Return lambda_1 L_noise + lambda_2 L_var + lambda_3 L_attention; a term of weight 0 is
    neither computed nor reported.

    The teacher is a constant: this is the one place where its gradient is stopped.
    """
    student_BxHxWxK, student_LxBxNxD = _outputs(student, settings)
    teacher_BxHxWxK, teacher_LxBxNxD = _outputs(jax.lax.stop_gradient(teacher), settings)
    comparison = Comparison(
        process,
        student_BxHxWxK,
        teacher_BxHxWxK,
        student_LxBxNxD,
        teacher_LxBxNxD,
        i_B,
        channels,
        settings,
    )
    total = jnp.zeros(())
    metrics: Metrics = {}
    for name, term in DISTILLATION.items():
        weight = getattr(settings, name)
        if weight > 0:
            loss, logged = term(comparison)
            total, metrics = total + weight * loss, metrics | logged
    return total, metrics


def hybrid_objective(process: GaussianProcess, settings: DistillConfig) -> Objective:
    """Return the objective of a run, LiT Eq. 5, as one pure function for the training step.

    With `settings.teacher == ""` the objective is the diffusion loss alone and takes no teacher
    output. It takes attention outputs of both networks exactly if `settings.compares_attention`.
    Raises ValueError, before anything compiles, for an unknown reading, or variance distillation on
    a process that does not learn its variance.
    """
    if settings.teacher and settings.variance_weight > 0:
        _check_reading(process, settings.variance_reading)

    def objective(
        student: Output,
        teacher: Output | None,
        x_start_BxHxWxC: jax.Array,
        x_t_BxHxWxC: jax.Array,
        i_B: jax.Array,
        noise_BxHxWxC: jax.Array,
    ) -> Term:
        if (teacher is not None) != bool(settings.teacher):
            given = "none" if teacher is None else "one"
            raise ValueError(
                f"the objective was given {given} teacher output, but distill.teacher is"
                f" {settings.teacher!r}: pass an output exactly if a teacher is named"
            )
        student_out_BxHxWxK, _ = _outputs(student, settings)
        loss, metrics = diffusion_loss(
            process, student_out_BxHxWxK, x_start_BxHxWxC, x_t_BxHxWxC, i_B, noise_BxHxWxC
        )
        if teacher is not None:
            distilled, logged = hybrid_distillation(
                process, student, teacher, i_B, x_start_BxHxWxC.shape[-1], settings
            )
            loss, metrics = loss + distilled, metrics | logged
        return loss, {"loss": loss} | metrics

    return objective


def _outputs(output: Output, settings: DistillConfig) -> tuple[jax.Array, jax.Array | None]:
    """Return the output of a network, and the attention outputs of its layers or None. Raises
    ValueError unless attention outputs are given exactly if they are compared."""
    given = isinstance(output, tuple)
    if given != settings.compares_attention:
        raise ValueError(
            f"the objective was given {'' if given else 'no '}attention outputs, but"
            f" distill.attention_weight is {settings.attention_weight} with teacher"
            f" {settings.teacher!r}: pass them exactly if they are compared"
        )
    return output if isinstance(output, tuple) else (output, None)


def _check_reading(process: GaussianProcess, reading: str) -> None:
    """Raise ValueError for an unknown reading and for a process with a fixed variance."""
    if reading not in VARIANCE_READINGS:
        raise unknown_name("variance reading", reading, VARIANCE_READINGS)
    if not process.learns_variance:
        raise ValueError(
            f"variance distillation needs a learned variance, but the process has var_type"
            f" {process.var_type!r}: set variance_weight to 0 or train with learn_sigma"
        )
