"""Samplers against the official loops, and the properties that their docstrings state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lit_jax.diffusion.gaussian import create_process
from lit_jax.diffusion.guidance import guided
from lit_jax.diffusion.losses import Denoiser
from lit_jax.diffusion.samplers import (
    SAMPLERS,
    ddim,
    ddim_reverse,
    ddpm,
    image_keys,
    per_image_noise,
)
from support.gaussian_cases import denoiser as denoiser_of_gaussian_data
from support.golden_cases import golden_sources, load_arrays, load_meta, nhwc, relative_error

SOURCES = golden_sources("diffusion_loops.npz")
FULL = create_process()
LOOP = 1e-4
# Golden loop -> (sampler, spacing, toy model, clip_denoised).
LOOPS: dict[str, tuple[Callable[..., jax.Array], str, bool, bool]] = {
    "ddim_clip0": (ddim, "ddim10", False, False),
    "ddim_clip1": (ddim, "ddim10", False, True),
    "ddpm_clip0": (ddpm, "8", False, False),
    "ddpm_clip1": (ddpm, "8", False, True),
    "toy_ddim_eta0": (ddim, "ddim10", True, False),
    "toy_ddim_eta1": (functools.partial(ddim, eta=1.0), "ddim10", True, False),
    "toy_ddpm": (ddpm, "20", True, False),
}


def toy(denoiser: Denoiser) -> Denoiser:
    """Return the network of the toy loops: `denoiser`, scaled so that x keeps unit scale."""
    level = jnp.asarray(np.sqrt(1.0 - FULL.alphas_cumprod), jnp.float32)

    def wrapped(x: jax.Array, t_B: jax.Array) -> jax.Array:
        out = denoiser(x, t_B)
        epsilon = level[t_B][:, None, None, None] * x + 0.2 * out[..., :4]
        return jnp.concatenate([epsilon, 0.5 * jnp.tanh(out[..., 4:])], axis=-1)

    return wrapped


def record(denoiser: Denoiser, seen: list[np.ndarray]) -> Denoiser:
    """Return `denoiser`, which then records every x: the trajectory of a compiled loop."""

    def wrapped(x: jax.Array, t_B: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return denoiser(x, t_B)

    return wrapped


@functools.cache
def compiled_loop(
    case: str, apply: Callable[..., jax.Array], scale: float, null: int
) -> tuple[Callable[..., jax.Array], list[np.ndarray]]:
    """Return one golden loop as a jitted function of the arrays in the golden files."""
    sampler, spacing, is_toy, clip = LOOPS[case]
    process, seen = create_process(spacing), []

    def run(params: Any, z: jax.Array, y: jax.Array, noise: jax.Array) -> jax.Array:
        network = functools.partial(apply, params)
        denoiser = guided(network, y, jnp.full_like(y, null), scale, "three")
        denoiser = record(toy(denoiser) if is_toy else denoiser, seen)
        return sampler(denoiser, process, z, lambda i: noise[i], clip_denoised=clip)

    return jax.jit(run), seen


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("case", LOOPS)
def test_loops_equal_the_official_ones(
    folder: Path, case: str, golden_dit: Callable[[Path], Any]
) -> None:
    """Compare every state of the conditional half; sample.py discards the other half."""
    arrays, meta = load_arrays(folder, "diffusion_loops"), load_meta(folder, "diffusion_loops")
    assert {*LOOPS, "ddim10_nocfg_clip0"} == set(meta["cases"])
    model = golden_dit(folder)
    steps = nhwc(arrays[f"{case}/steps_first_half"])
    z, y = nhwc(arrays["z"])[:1], arrays["y"][:1]
    # The official sequence begins at the last step. DDIM with eta 0 must not read the noise.
    official = arrays.get(f"{case}/noise_seq_first_used_first")
    noise = np.full_like(steps, np.nan) if official is None else nhwc(official)[::-1, :1].copy()
    run, seen = compiled_loop(case, model.apply, meta["cfg_scale"], model.config.null_label)
    seen.clear()
    final = run(model.params, z, y, noise)
    jax.effects_barrier()
    assert len(seen) == len(steps)
    for number, (value, expected) in enumerate(zip([*seen[1:], final], steps, strict=True)):
        assert relative_error(value, expected) < LOOP, number
    assert relative_error(final, nhwc(arrays[f"{case}/final"])[:1]) < LOOP


@pytest.mark.parametrize("folder", SOURCES)
def test_unguided_loop_equals_the_official_one(
    folder: Path, golden_dit: Callable[[Path], Any]
) -> None:
    arrays, model = load_arrays(folder, "diffusion_loops"), golden_dit(folder)

    def denoiser(x: jax.Array, t_B: jax.Array) -> jax.Array:
        return model.apply(model.params, x, t_B, jnp.asarray(arrays["y"][:1]))

    final = ddim(denoiser, create_process("ddim10"), jnp.asarray(nhwc(arrays["z"])[:1]), _no_noise)
    assert relative_error(final, nhwc(arrays["ddim10_nocfg_clip0/final"])) < LOOP


def _no_noise(i: jax.Array) -> jax.Array:
    raise AssertionError("DDIM with eta 0 called noise_fn")


def test_samplers_have_the_known_values() -> None:
    """Run ten steps with a formula as network; z = 0.3 cos k at every step."""
    shape = (2, 4, 4, 4)
    k = np.arange(np.prod(shape)).reshape(shape)
    x_T = jnp.asarray(nhwc(np.sin(0.21 * k)), jnp.float32)
    z = jnp.asarray(nhwc(0.3 * np.cos(k)), jnp.float32)

    def denoiser(x: jax.Array, t_B: jax.Array) -> jax.Array:
        epsilon = 0.5 * x + 0.1 * t_B[:, None, None, None] / 1000
        return jnp.concatenate([epsilon, 0.2 * jnp.sin(x)], axis=-1)

    for name, total, squares, first in (
        ("ddpm", -141.52871, 1413.52950, [1.033189, 0.75409, -0.694362]),
        ("ddim", -231.30505, 12692.18110, [-2.358444, 0.534801, 3.300922]),
    ):
        sampler = SAMPLERS[name]
        x_0 = sampler(denoiser, create_process("10"), x_T, lambda i: z)
        x = np.moveaxis(np.asarray(x_0), -1, 1)
        assert x.sum() == pytest.approx(total, abs=2e-3), name
        assert (x**2).sum() == pytest.approx(squares, rel=1e-5), name
        np.testing.assert_allclose(x.ravel()[:3], first, atol=2e-5, err_msg=name)


def noise_image(seed: int, side: int = 4) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, side, side, 4))


def test_reversed_ddim_returns_to_the_noise() -> None:
    process = create_process(var_type="fixed_small")
    x_T = noise_image(0)
    x_0 = ddim(denoiser_of_gaussian_data, process, x_T, _no_noise)

    def body(i: int, x: jax.Array) -> jax.Array:
        # Step i starts at x_i, so that the network is evaluated at the noise level of the image.
        i_B = jnp.full(len(x), i)
        return ddim_reverse(process, denoiser_of_gaussian_data(x, i_B), x, i_B)

    # The last state of the process is x_T itself: n - 1 reverse steps lead there from step 0.
    back = jax.lax.fori_loop(0, process.num_steps - 1, body, x_0)
    np.testing.assert_allclose(back, x_T, atol=0.05)
    assert np.abs(x_0 - x_T).max() > 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    process = create_process("10", var_type="fixed_small")
    sampler = functools.partial(SAMPLERS[name], **({"eta": 1.0} if name == "ddim" else {}))

    @jax.jit
    def run(index_B: jax.Array) -> jax.Array:
        x_T, noise_fn = per_image_noise(image_keys(jax.random.key(7), index_B), (4, 4, 3))
        return sampler(denoiser_of_gaussian_data, process, x_T, noise_fn)

    alone, batch, other = (run(jnp.array(ids)) for ids in ([5], [3, 4, 5, 6], [8, 5, 1]))
    np.testing.assert_array_equal(alone[0], batch[2])
    np.testing.assert_array_equal(alone[0], other[1])
    assert np.abs(batch[2] - batch[3]).max() > 0.1


def test_images_are_the_same_on_eight_devices() -> None:
    process = create_process("10", var_type="fixed_small")

    def run(index_B: jax.Array) -> jax.Array:
        x_T, noise_fn = per_image_noise(image_keys(jax.random.key(7), index_B), (4, 4, 3))
        return ddpm(denoiser_of_gaussian_data, process, x_T, noise_fn)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    split = NamedSharding(mesh, PartitionSpec("data"))
    index_B = jnp.arange(16)
    sharded = jax.jit(run, in_shardings=split, out_shardings=split)(index_B)
    np.testing.assert_allclose(sharded, jax.jit(run)(index_B), atol=1e-6)


def test_noise_is_the_documented_function_of_key_and_step() -> None:
    keys_B = image_keys(jax.random.key(3), jnp.array([10, 11]))
    assert keys_B[1] == jax.random.fold_in(jax.random.key(3), 11)
    x_T, noise_fn = per_image_noise(keys_B, (2, 2, 3))
    draws = [x_T, noise_fn(jnp.array(0)), noise_fn(jnp.array(9))]
    for number, value in zip((0, 1, 10), draws, strict=True):
        expected = jax.random.normal(jax.random.fold_in(keys_B[1], number), (2, 2, 3))
        np.testing.assert_array_equal(value[1], expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_one_loop_that_traces_the_network_once(name: str) -> None:
    calls: list[Any] = []

    def denoiser(x: jax.Array, t_B: jax.Array) -> jax.Array:
        calls.append(t_B)
        return denoiser_of_gaussian_data(x, t_B)

    def trace(spacing: str) -> str:
        process = create_process(spacing, var_type="fixed_small")
        x_T, noise_fn = per_image_noise(image_keys(jax.random.key(0), jnp.arange(2)), (2, 2, 1))
        return str(jax.make_jaxpr(lambda x: SAMPLERS[name](denoiser, process, x, noise_fn))(x_T))

    short, long = trace("10"), trace("200")
    assert len(calls) == 2
    assert short.count("\n") == long.count("\n")


def test_progress_reports_every_step() -> None:
    seen: list[int] = []
    process = create_process("10", var_type="fixed_small")
    x_T, noise_fn = per_image_noise(image_keys(jax.random.key(0), jnp.arange(2)), (2, 2, 1))
    for sampler in SAMPLERS.values():
        seen.clear()
        sampler(
            denoiser_of_gaussian_data,
            process,
            x_T,
            noise_fn,
            progress=lambda i: seen.append(int(i)),
        )
        jax.effects_barrier()
        assert sorted(seen) == list(range(10))


def test_negative_eta_is_refused() -> None:
    with pytest.raises(ValueError, match="eta is -0.1"):
        ddim(denoiser_of_gaussian_data, create_process("10"), noise_image(0), _no_noise, eta=-0.1)
