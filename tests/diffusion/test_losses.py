"""Losses, their gradients and bits per dimension against the official numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.checkpoints.convert import export_params
from lit_jax.diffusion.gaussian import (
    GaussianProcess,
    create_process,
    original_timesteps,
    q_sample,
)
from lit_jax.diffusion.likelihood import (
    discretised_log_likelihood,
    gaussian_kl,
    saturating_tanh,
)
from lit_jax.diffusion.losses import (
    bits_per_dimension,
    prior_bits,
    training_losses,
    variational_term,
)
from support.golden_cases import golden_sources, load_arrays, load_meta, nhwc, relative_error

SOURCES = golden_sources("diffusion_steps.npz")
# Golden name of a loss variant -> (process arguments, row of LOSSES).
FIXED_LARGE, FIXED_SMALL = {"var_type": "fixed_large"}, {"var_type": "fixed_small"}
VARIANTS: dict[str, tuple[dict[str, str], str]] = {
    "default": ({}, "mse"),
    "rescaled_mse": ({}, "rescaled_mse"),
    "rescaled_kl": ({}, "rescaled_kl"),
    "fixed_large": (FIXED_LARGE, "mse"),
    "fixed_small": (FIXED_SMALL, "mse"),
    "fixed_large_kl": (FIXED_LARGE, "rescaled_kl"),
    "predict_xstart": ({"mean_type": "x_start"}, "mse"),
    "respaced250": ({"spacing": "250"}, "mse"),
    "cosine": ({"schedule": "squaredcos_cap_v2"}, "mse"),
}
GRADIENT = 5e-5


def assert_losses(value: Any, expected: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_equal_the_official_ones(
    folder: Path, variant: str, golden_dit: Callable[[Path], Any]
) -> None:
    """Take the gradient through the output, so that nine variants share one compiled network."""
    arrays, model = load_arrays(folder, "diffusion_steps"), golden_dit(folder)
    assert set(VARIANTS) == set(load_meta(folder, "diffusion_steps")["loss_variants"])
    arguments, loss_type = VARIANTS[variant]
    process, i_B = create_process(**arguments), jnp.asarray(arrays[f"loss_{variant}/t"])
    x_start, noise = nhwc(arrays["x_start"]), nhwc(arrays["noise"])
    x_t = q_sample(process, x_start, i_B, noise)

    def loss_of(out_BxHxWxK: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        used = out_BxHxWxK if process.learns_variance else out_BxHxWxK[..., :4]
        losses = training_losses(process, used, x_start, x_t, i_B, noise, loss_type)
        return losses["loss"].mean(), losses

    inputs = (model.params, x_t, original_timesteps(process, i_B), jnp.asarray(arrays["y"]))
    out = model.apply(*inputs)
    gradient, losses = jax.jit(jax.grad(loss_of, has_aux=True))(out)
    parameters = pull_back(model.apply)(*inputs, gradient)
    gradients = export_params(parameters, model.config, "dit")

    expected = {
        key.split("/", 1)[1]: arrays[key] for key in arrays if key.startswith(f"loss_{variant}/")
    }
    assert set(losses) == {"loss", "mse", "vb"} & set(expected)
    for name, value in expected.items():
        if name in losses:
            assert_losses(losses[name], value, name)
        elif name.startswith("grad:"):
            assert relative_error(gradients[name.removeprefix("grad:")], value) < GRADIENT, name


@functools.cache
def pull_back(apply: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Return compiled (params, x, t, y, g) -> gradient of <network(...), g> by params."""

    def product(params: Any, x: Any, t: Any, y: Any, g: Any) -> jax.Array:
        return (apply(params, x, t, y) * g).sum()

    return jax.jit(jax.grad(product))


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("clip", [True, False])
def test_terms_of_the_bound_equal_the_official_ones(
    folder: Path, clip: bool, golden_dit: Callable[[Path], Any]
) -> None:
    """Compare t = 0, a discretised likelihood (x_start exceeds +-0.999), and t > 0, the KL."""
    arrays, model = load_arrays(folder, "diffusion_steps"), golden_dit(folder)
    process, i_B, x_t = create_process(), jnp.asarray(arrays["t"]), nhwc(arrays["q_sample"])
    assert arrays["t"][0] == 0 and np.abs(arrays["x_start"][0]).max() > 0.999
    out = model.apply(model.params, x_t, i_B, arrays["y"])
    term = variational_term(process, out, nhwc(arrays["x_start"]), x_t, i_B, clip)
    assert_losses(term.bits_B, arrays[f"vb_terms_clip{int(clip)}"], "vb")
    assert_losses(prior_bits(process, nhwc(arrays["x_start"])), arrays["prior_bpd"], "prior")


@pytest.mark.parametrize("folder", SOURCES)
def test_bits_per_dimension_equal_the_official_ones(
    folder: Path, golden_dit: Callable[[Path], Any]
) -> None:
    arrays, model = load_arrays(folder, "diffusion_steps"), golden_dit(folder)
    noise = jnp.asarray(nhwc(arrays["bpd/noise_seq_first_used_first"])[::-1].copy())
    labels, process = jnp.asarray(arrays["bpd/y"]), create_process("20")

    @jax.jit
    def run(params: Any, x_start: jax.Array) -> dict[str, jax.Array]:
        def denoiser(x: jax.Array, t_B: jax.Array) -> jax.Array:
            return model.apply(params, x, t_B, labels)

        return bits_per_dimension(denoiser, process, x_start, lambda i: noise[i])

    bits = run(model.params, nhwc(arrays["bpd/x_start"]))
    assert_losses(bits["total_bpd"], arrays["bpd/total_bpd"], "total_bpd")
    assert_losses(bits["prior_bpd"], arrays["bpd/prior_bpd"], "prior_bpd")
    # The official loop runs from the last step to the first; ours is ordered by step.
    for name, official in (("vb", "vb"), ("x_start_mse", "xstart_mse"), ("mse", "mse")):
        assert_losses(bits[name][:, ::-1], arrays[f"bpd/{official}"], name)


def sines(frequency: float, shape_NCHW: tuple[int, ...], offset: float = 0.0) -> np.ndarray:
    k = np.arange(np.prod(shape_NCHW)).reshape(shape_NCHW)
    return nhwc(np.sin(frequency * k + offset)).astype(np.float32)


def known_inputs(process: GaussianProcess) -> tuple[Any, ...]:
    shape, i_B = (3, 4, 8, 8), jnp.array([0, 500, 999])
    x_start, noise = sines(0.37, shape), sines(0.53, shape, np.pi / 2)
    out = sines(0.11, (3, 8, 8, 8))
    return out, x_start, q_sample(process, x_start, i_B, noise), i_B, noise


def test_losses_have_the_known_values() -> None:
    process = create_process()
    losses = training_losses(process, *known_inputs(process))
    np.testing.assert_allclose(losses["mse"], [1.005290389, 0.997764289, 1.003789902], rtol=1e-5)
    np.testing.assert_allclose(losses["vb"], [2.418114424, 0.007934871, 0.014777776], rtol=1e-5)
    np.testing.assert_allclose(losses["loss"], losses["mse"] + losses["vb"], rtol=1e-6)


def test_rescaling_follows_the_number_of_steps() -> None:
    process = create_process("250")
    out, x_start, x_t, _, noise = known_inputs(create_process())
    inputs = (process, out, x_start, x_t, jnp.array([0, 100, 249]), noise)
    plain, rescaled = (training_losses(*inputs, loss_type=name) for name in ("mse", "rescaled_mse"))
    np.testing.assert_allclose(rescaled["vb"], 0.25 * plain["vb"], rtol=1e-6)
    plain, rescaled = (training_losses(*inputs, loss_type=name) for name in ("kl", "rescaled_kl"))
    np.testing.assert_allclose(rescaled["loss"], 250 * plain["loss"], rtol=1e-6)


def test_the_variational_part_of_the_hybrid_loss_leaves_the_mean_alone() -> None:
    process = create_process()
    out, *rest = known_inputs(process)

    def part(name: str, loss_type: str) -> jax.Array:
        return jax.grad(
            lambda out: training_losses(process, out, *rest, loss_type=loss_type)[name].sum()
        )(jnp.asarray(out))

    hybrid, bound, simple = part("vb", "mse"), part("loss", "kl"), part("mse", "mse")
    assert not hybrid[..., :4].any() and np.abs(hybrid[..., 4:]).max() > 0
    np.testing.assert_allclose(hybrid[..., 4:], bound[..., 4:], rtol=1e-6)
    assert np.abs(bound[..., :4]).max() > 0
    assert not simple[..., 4:].any()


def test_target_of_the_snr_option_changes_after_step_249() -> None:
    """Compare weights: up to step 249 an error in epsilon has weight (1 - abar) / abar."""
    process, (out, x_start, _, _, noise) = create_process(), known_inputs(create_process())
    i_B = jnp.array([0, 249, 250])
    inputs = (process, out, x_start, q_sample(process, x_start, i_B, noise), i_B, noise)
    plain, snr = (training_losses(*inputs, loss_type=name) for name in ("mse", "snr_mse"))
    factor = 1 / process.alphas_cumprod[[0, 249]] - 1
    np.testing.assert_allclose(snr["mse"][:2], factor * plain["mse"][:2], rtol=1e-4)
    np.testing.assert_array_equal(snr["mse"][2], plain["mse"][2])
    np.testing.assert_array_equal(snr["vb"], plain["vb"])
    np.testing.assert_allclose(snr["loss"], snr["mse"] + snr["vb"], rtol=1e-6)
    assert abs(factor[1] - 1) > 0.05, "step 249 would not show which target it has"


def test_grey_level_probabilities_sum_to_one() -> None:
    """Cover the real line with 256 bins, also for a Gaussian mostly outside [-1, 1]."""
    levels = jnp.linspace(-1.0, 1.0, 256)[None, :, None, None]
    for mean, log_scale in ((0.1, -2.0), (0.9, -1.0), (-1.5, 0.0)):
        log_p = discretised_log_likelihood(
            levels, jnp.full_like(levels, mean), jnp.array(log_scale)
        )
        assert jnp.exp(log_p).sum().item() == pytest.approx(1.0, abs=1e-5)


def test_gaussian_kl_has_the_textbook_value() -> None:
    # KL(N(0, 1) || N(1, 4)) = (ln 4 - 1 + 1 / 4 + 1 / 4) / 2
    value = gaussian_kl(jnp.array(0.0), jnp.array(0.0), jnp.array(1.0), jnp.log(4.0))
    assert value.item() == pytest.approx((np.log(4.0) - 0.5) / 2, rel=1e-6)


def test_saturating_tanh_is_exact_in_the_tails() -> None:
    u = np.linspace(6.0, 12.0, 20001, dtype=np.float32)
    exact = np.tanh(u.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(saturating_tanh)(u), exact)
    np.testing.assert_array_equal(jax.jit(saturating_tanh)(-u), -exact)
    middle = np.linspace(-2.0, 2.0, 1001, dtype=np.float32)
    np.testing.assert_allclose(saturating_tanh(middle), np.tanh(middle), atol=3e-7)
    slope = jax.vmap(jax.grad(saturating_tanh))(middle)
    np.testing.assert_allclose(slope, 1 - np.tanh(middle) ** 2, atol=1e-6)


def test_unknown_loss_lists_the_known_ones() -> None:
    process = create_process()
    with pytest.raises(ValueError, match="known: kl, mse, rescaled_kl, rescaled_mse, snr_mse"):
        training_losses(process, *known_inputs(process), loss_type="l1")
