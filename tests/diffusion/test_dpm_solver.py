"""DPM-Solver++ against the official sampler of PixArt, and against the scheduler of diffusers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lit_jax.diffusion.dpm_solver import (
    ContinuousSchedule,
    diffusers_steps,
    dpm_solver,
    dpm_solver_diffusers,
    official_steps,
)
from lit_jax.diffusion.gaussian import create_process, x_start_from_epsilon
from lit_jax.diffusion.guidance import guided
from lit_jax.diffusion.losses import Denoiser
from lit_jax.diffusion.samplers import SAMPLERS
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import apply_fn
from lit_jax.models.pixart.config import PixArtConfig
from support.golden_cases import golden_sources, load_arrays, load_meta, nhwc, relative_error
from support.pixart_cases import golden_arrays, golden_model, golden_sources_of, quick_jit

SOURCES = golden_sources("dpm_solver.npz")
FULL = create_process()
SCHEDULE = ContinuousSchedule(FULL.original_alphas_cumprod)
LOOP = 2e-5
# Golden loop of the analytic model -> (guidance, steps, order, spacing).
ANALYTIC: dict[str, tuple[float, str, int, str]] = {
    "cfg4.5_20_o2": (4.5, "20", 2, "time_uniform"),
    "cfg1_20_o2": (1.0, "20", 2, "time_uniform"),
    "cfg4.5_14_o2": (4.5, "14", 2, "time_uniform"),
    "cfg2_6_o2": (2.0, "6", 2, "time_uniform"),
    "cfg4.5_20_o1": (4.5, "20", 1, "time_uniform"),
    "cfg4.5_20_o3": (4.5, "20", 3, "time_uniform"),
    "cfg4.5_20_o2_logsnr": (4.5, "20", 2, "logSNR"),
}
SAMPLER_OF = {"time_uniform": "dpm_solver", "logSNR": "dpm_solver_logsnr"}
Seen = list[tuple[float, np.ndarray]]


def never(i: jax.Array) -> jax.Array:
    raise AssertionError("an ODE solver called noise_fn")


def fixed(steps: str) -> Any:
    """Return a process of `steps` whose network has no variance channels."""
    return create_process(steps, var_type="fixed_small")


def record(denoiser: Denoiser, seen: Seen) -> Denoiser:
    """Return `denoiser`, which then records every time and state it is called with."""

    def wrapped(x: jax.Array, t_B: jax.Array) -> jax.Array:
        assert t_B.dtype == jnp.float32
        jax.debug.callback(
            lambda x, t_B: seen.append((float(t_B[0]), np.asarray(x))), x, t_B, ordered=True
        )
        return denoiser(x, t_B)

    return wrapped


@pytest.mark.parametrize("folder", SOURCES)
def test_the_schedule_equals_the_official_one(folder: Path) -> None:
    """The official schedule is float32: at sigma 0.01 cancellation leaves four digits of lambda."""
    arrays = load_arrays(folder, "dpm_solver")
    u = arrays["schedule/t"].astype(np.float64)
    official_lambda = arrays["schedule/lambda"]
    for name, value in {
        "log_alpha": SCHEDULE.log_alpha(u),
        "alpha": SCHEDULE.alpha(u),
        "std": SCHEDULE.sigma(u),
        "inverse_lambda": SCHEDULE.inverse_lambda(official_lambda.astype(np.float64)),
    }.items():
        assert relative_error(value, arrays[f"schedule/{name}"]) < 1e-6, name
    clean = arrays["schedule/std"] > 0.1
    assert clean.sum() == 37
    assert relative_error(SCHEDULE.lambda_(u)[clean], official_lambda[clean]) < 1e-6
    np.testing.assert_allclose(SCHEDULE.lambda_(u), official_lambda, atol=1e-4)
    np.testing.assert_allclose(SCHEDULE.inverse_lambda(SCHEDULE.lambda_(u)), u, atol=1e-12)


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("case", ANALYTIC)
def test_loops_equal_the_official_ones(folder: Path, case: str) -> None:
    """Compare the result, the times of the evaluations, and the states where they are stored."""
    arrays, meta = load_arrays(folder, "dpm_solver"), load_meta(folder, "dpm_solver")
    assert {f"analytic/{name}" for name in ANALYTIC} == {
        name for name in meta["cases"] if name.startswith("analytic/")
    }
    scale, steps, order, spacing = ANALYTIC[case]
    z, cond, null = (
        jnp.asarray(nhwc(arrays[f"analytic/{name}"])) for name in ("z", "cond", "uncond")
    )

    def network(x: jax.Array, t_B: jax.Array, c: jax.Array) -> jax.Array:
        t = t_B[:, None, None, None]
        return jnp.sin(t / 400) * x + 0.3 * jnp.cos(t / 150) + 0.1 * c * jnp.tanh(x)

    seen: Seen = []
    denoiser = record(guided(network, cond, null, scale, "all"), seen)
    sampler = SAMPLERS[SAMPLER_OF[spacing]]
    out = jax.jit(lambda z: sampler(denoiser, fixed(steps), z, never, order=order))(z)
    jax.effects_barrier()
    assert relative_error(out, nhwc(arrays[f"analytic/{case}/out"])) < LOOP
    times = np.array([t for t, _ in seen])
    # The ends of logSNR are lambdas; the float32 of the official sampler cancels their digits.
    tolerance = 1e-5 if spacing == "logSNR" else 1e-6
    assert relative_error(times, arrays[f"analytic/{case}/model_times"]) < tolerance
    assert len(seen) == meta["cases"][f"analytic/{case}"]["nfe"]
    if order == 2:
        np.testing.assert_allclose(sampler.times(fixed(steps)), times, rtol=1e-6)
    if f"analytic/{case}/intermediates" in arrays:
        states = nhwc(arrays[f"analytic/{case}/intermediates"])
        assert len(states) == len(seen) + 1
        for number, (value, expected) in enumerate(zip(seen, states, strict=False)):
            assert relative_error(value[1], expected) < LOOP, number
        assert relative_error(out, states[-1]) < LOOP


def damped(denoiser: Denoiser) -> Denoiser:
    """Return the network of the damped golden runs: the first four channels, at unit scale."""
    level = jnp.asarray(np.sqrt(1.0 - FULL.alphas_cumprod), jnp.float32)

    def wrapped(x: jax.Array, t_B: jax.Array) -> jax.Array:
        level_B = jnp.interp(t_B, jnp.arange(1000.0), level)
        return level_B[:, None, None, None] * x + 0.1 * denoiser(x, t_B)[..., :4]

    return wrapped


@functools.cache
def compiled_run(config: PixArtConfig, tame: bool) -> Callable[..., jax.Array]:
    """Return f(params, z, cond, null): 20 steps with guidance 4.5."""
    network = apply_fn(config)

    def run(params: Any, z: jax.Array, cond: TextCondition, null: TextCondition) -> jax.Array:
        denoiser = guided(functools.partial(network, params), cond, null, 4.5, "all")
        if tame:
            return dpm_solver(damped(denoiser), fixed("20"), z, never)
        return dpm_solver(denoiser, create_process("20"), z, never)

    return quick_jit(run)


@pytest.mark.parametrize(("folder", "case"), golden_sources_of("pixart_base", "pixart_ms"))
@pytest.mark.parametrize("variant", ["raw", "damped"])
def test_a_guided_pixart_equals_the_official_one(folder: Path, case: str, variant: str) -> None:
    """Guide all four channels; the null caption has the mask of the prompt."""
    arrays = golden_arrays(folder, "dpm_solver")
    config, params = golden_model(folder, case)
    mask = arrays[f"{case}/mask"]
    assert (mask == 0).any()
    cond, null = (
        TextCondition(arrays[f"{case}/{name}"][:, 0], mask) for name in ("caption", "null")
    )
    out = compiled_run(config, variant == "damped")(params, nhwc(arrays[f"{case}/z"]), cond, null)
    assert relative_error(out, nhwc(arrays[f"{case}/{variant}_cfg4.5_20_o2/out"])) < LOOP


@pytest.mark.parametrize(
    ("sampler", "steps", "total", "first"),
    [
        (dpm_solver, "20", -2103.28847, [-16.78618, -14.927343, -13.15017]),
        (dpm_solver, "14", -2105.78958, None),
        (dpm_solver, "5", -2639.81492, None),
        (dpm_solver_diffusers, "20", -2093.48091, [-16.707701, -14.85864, -13.090838]),
    ],
)
def test_solvers_have_the_known_values(
    sampler: Callable[..., jax.Array], steps: str, total: float, first: list[float] | None
) -> None:
    """Use a formula as network; its condition is a number that is added."""
    shape = (2, 4, 4, 4)
    x_T = jnp.asarray(nhwc(np.sin(0.21 * np.arange(np.prod(shape)).reshape(shape))), jnp.float32)

    def network(x: jax.Array, t_B: jax.Array, c_B: jax.Array) -> jax.Array:
        return 0.5 * x + (0.1 * t_B / 1000 + c_B)[:, None, None, None]

    denoiser = guided(network, jnp.full(2, 0.2), jnp.zeros(2), 4.5, "all")
    x = np.moveaxis(np.asarray(sampler(denoiser, fixed(steps), x_T, never)), -1, 1)
    assert x.sum() == pytest.approx(total, rel=2e-6)
    if first is not None:
        np.testing.assert_allclose(x.ravel()[:3], first, rtol=2e-6)


def test_the_schedule_has_the_known_values() -> None:
    u = np.array([1.0, 0.95005, 0.5, 0.001])
    np.testing.assert_allclose(SCHEDULE.lambda_(u), [-5.0588, -4.5667, -1.2308, 4.6050], atol=2e-4)
    known = "999 949 899 849 799 749 699 649 599 549 500 450 400 350 300 250 200 150 100 50"
    assert diffusers_steps(fixed("20")).times_n.tolist() == [float(t) for t in known.split()]
    np.testing.assert_allclose(
        official_steps(fixed("20")).times_n[[0, 1, 2, 19]], [999, 949.05, 899.1, 49.95]
    )


@pytest.mark.parametrize("steps", ["6", "14", "20", "25"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_step_equals_the_scheduler_of_diffusers(order: int, steps: str) -> None:
    """Compare the states for equal predictions; below 15 steps the last steps have other orders."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        json.loads((Path(__file__).parent / "pixart_sigma_scheduler.json").read_text())
        | {"solver_order": order}
    )
    scheduler.set_timesteps(int(steps))

    def epsilon(x: Any, t: float, sin: Callable[..., Any]) -> Any:
        return 0.4 * x + 0.3 * sin(2.0 * x + t / 200.0)

    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    seen: Seen = []

    def denoiser(x: jax.Array, t_B: jax.Array) -> jax.Array:
        return epsilon(x, t_B[:, None, None, None], jnp.sin)

    last = dpm_solver_diffusers(
        record(denoiser, seen), fixed(steps), jnp.asarray(x), never, order=order
    )
    jax.effects_barrier()
    states, state = [], torch.from_numpy(x)
    for t in scheduler.timesteps:
        out = epsilon(state, float(t), torch.sin)
        state = scheduler.step(out, t, state, return_dict=False)[0]
        states.append(state.numpy())
    assert [t for t, _ in seen] == scheduler.timesteps.tolist()
    ours = [*(x for _, x in seen[1:]), last]
    for number, (value, expected) in enumerate(zip(ours, states, strict=True)):
        assert relative_error(value, expected) < 1e-5, number


def test_a_network_that_predicts_the_image_gives_the_same_result() -> None:
    x_T = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    by_noise = fixed("8")
    by_image = create_process("8", var_type="fixed_small", mean_type="x_start")

    def epsilon(x: jax.Array, t_B: jax.Array) -> jax.Array:
        return jnp.sin(x + t_B[:, None, None, None] / 300)

    def image(x: jax.Array, t_B: jax.Array) -> jax.Array:
        return x_start_from_epsilon(FULL, x, epsilon(x, t_B), t_B.astype(int))

    first = dpm_solver_diffusers(epsilon, by_noise, x_T, never)
    second = dpm_solver_diffusers(image, by_image, x_T, never)
    assert relative_error(first, second) < LOOP
    assert np.abs(first - dpm_solver_diffusers(epsilon, by_image, x_T, never)).max() > 0.1


@pytest.mark.parametrize("sampler", [dpm_solver, dpm_solver_diffusers])
def test_mistakes_are_refused(sampler: Callable[..., jax.Array]) -> None:
    def refused(process: Any, **options: Any) -> str:
        with pytest.raises(ValueError) as error:
            sampler(lambda x, t_B: x, process, jnp.zeros((1, 2, 2, 3)), never, **options)
        return str(error.value)

    assert "'ddim50' pick timesteps" in refused(create_process("ddim50"))
    assert "'4,6' pick timesteps" in refused(create_process("4,6"))
    assert "the number of steps, '10'" in refused(create_process("4,6"))
    assert "order 4 of the DPM solver" in refused(fixed("10"), order=4)
    assert "2 steps are too few for a DPM solver of order 3" in refused(fixed("2"), order=3)
    assert "returned 3 channels for images of 3" in refused(create_process("10"))


def test_spacings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'logSNR'"):
        official_steps(fixed("10"), spacing="logSRN")
    with pytest.raises(ValueError, match="1000 steps between 1000.*999 at most"):
        diffusers_steps(fixed(""))
    assert len(diffusers_steps(fixed("999")).times_n) == 999
