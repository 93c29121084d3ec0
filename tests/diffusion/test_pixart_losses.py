"""Losses of PixArt's training process, IDDPM("1000"), against the official numbers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lit_jax.checkpoints.convert import import_params
from lit_jax.checkpoints.detect import detect_config
from lit_jax.checkpoints.layouts import layout_of
from lit_jax.diffusion.gaussian import (
    GaussianProcess,
    create_process,
    original_timesteps,
    predict_x_start,
    q_sample,
    split_output,
)
from lit_jax.diffusion.losses import training_losses
from lit_jax.models.conditions import TextCondition
from lit_jax.models.functional import apply_fn
from support.golden_cases import golden_sources, load_arrays, load_meta, nhwc, relative_error

SOURCES = golden_sources("pixart_iddpm.npz")

# Golden name of a loss variant -> (process arguments, row of LOSSES).
VARIANTS: dict[str, tuple[dict[str, str], str]] = {
    "default": ({}, "mse"),
    "snr": ({}, "snr_mse"),
    "pred_xstart_snr": ({"mean_type": "x_start"}, "snr_mse"),
    "nosigma": ({"var_type": "fixed_large"}, "mse"),
}


def pixart_process(**arguments: str) -> GaussianProcess:
    return create_process("1000", **arguments)


@functools.cache
def network_output(folder: Path) -> jax.Array:
    """Return the output of the golden PixArt for x_t at t and its captions; variants share x_t."""
    files = sorted((folder / "hf_pixart_sharded").glob("*.safetensors"))
    state = {key: value for file in files for key, value in load_file(file).items()}
    hub = json.loads((folder / "hf_pixart_sharded" / "config.json").read_text())
    config = detect_config(state, hub=hub)
    params, _ = import_params(state, config, layout_of(list(state)))
    arrays, process = load_arrays(folder, "pixart_iddpm"), pixart_process()
    i_B = jnp.asarray(arrays["t"])
    x_t = q_sample(process, nhwc(arrays["x_start"]), i_B, nhwc(arrays["noise"]))
    condition = TextCondition(arrays["y"][:, 0], arrays["mask"])
    out: jax.Array = jax.jit(apply_fn(config))(
        params, x_t, original_timesteps(process, i_B), condition
    )
    return out


@pytest.mark.parametrize("folder", SOURCES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_equal_the_official_ones(folder: Path, variant: str) -> None:
    arrays = load_arrays(folder, "pixart_iddpm")
    assert set(VARIANTS) == set(load_meta(folder, "pixart_iddpm")["variants"])
    arguments, loss_type = VARIANTS[variant]
    process, i_B = pixart_process(**arguments), jnp.asarray(arrays["t"])
    x_start, noise = nhwc(arrays["x_start"]), nhwc(arrays["noise"])
    out = network_output(folder)
    used = out if process.learns_variance else out[..., :4]
    x_t = q_sample(process, x_start, i_B, noise)
    losses = training_losses(process, used, x_start, x_t, i_B, noise, loss_type)
    expected = {
        key.removeprefix(f"{variant}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{variant}/")
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("folder", SOURCES)
def test_parts_of_the_loss_equal_the_official_ones(folder: Path) -> None:
    """Compare the results of the official option `return_startx`: x_t, epsilon, implied x_0."""
    arrays, process = load_arrays(folder, "pixart_iddpm"), pixart_process()
    i_B = jnp.asarray(arrays["t"])
    x_t = q_sample(process, nhwc(arrays["x_start"]), i_B, nhwc(arrays["noise"]))
    epsilon, _ = split_output(process, network_output(folder), 4)
    parts: dict[str, Any] = {
        "x_t": x_t,
        "eps": epsilon,
        "pred_xstart": predict_x_start(process, epsilon, x_t, i_B),
    }
    for name, value in parts.items():
        assert relative_error(value, nhwc(arrays[f"return_startx/{name}"])) < 1e-5, name


@pytest.mark.parametrize("folder", SOURCES)
def test_both_mean_types_describe_one_loss(folder: Path) -> None:
    """Compare an epsilon with the x_0 it implies: equal `snr` losses before and after step 249."""
    arrays, by_epsilon = load_arrays(folder, "pixart_iddpm"), pixart_process()
    by_x_start = pixart_process(mean_type="x_start")
    i_B = jnp.asarray(arrays["t"])
    assert arrays["t"].min() <= 249 < arrays["t"].max()
    x_start, noise = nhwc(arrays["x_start"]), nhwc(arrays["noise"])
    x_t = q_sample(by_epsilon, x_start, i_B, noise)
    epsilon, v = split_output(by_epsilon, network_output(folder), 4)
    x_0 = predict_x_start(by_epsilon, epsilon, x_t, i_B)
    first, second = (
        training_losses(
            process, jnp.concatenate([mean, v], -1), x_start, x_t, i_B, noise, "snr_mse"
        )
        for process, mean in ((by_epsilon, epsilon), (by_x_start, x_0))
    )
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=2e-4, atol=2e-6, err_msg=name)
