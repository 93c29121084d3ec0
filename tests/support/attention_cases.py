"""Official attention weights as parameters of this package, and the analytic fill rule of tests.

Written out by hand and independent of the key tables, so that a mistake in its tables and one
here cannot cancel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lit_jax.models.attention import mixer_class
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.functional import Params
from support.golden_cases import (
    golden_sources,
    load_arrays,
    load_meta,
    load_state_dict,
    relative_error,
)


def sine_input(shape: tuple[int, ...], a: float) -> np.ndarray:
    """sin(a k) at flat index k, float32."""
    return np.sin(a * np.arange(math.prod(shape), dtype=np.float64)).reshape(shape).astype("f4")


def sine_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """0.1 sin(0.37 k + i) at flat index k of the i-th key in alphabetical order, float32."""
    return {
        key: (0.1 * np.sin(0.37 * np.arange(math.prod(shapes[key])) + i))
        .reshape(shapes[key])
        .astype("f4")
        for i, key in enumerate(sorted(shapes))
    }


# torch projection -> the parameters that are equal parts of its rows.
PROJECTIONS = {
    "q": ("q",),
    "kv": ("k", "v"),
    "qkv": ("q", "k", "v"),
    "proj": ("out",),
}


def attention_params(torch_weights: Mapping[str, np.ndarray]) -> Params:
    """Parameters of a mixer from torch weights or gradients; keys that are absent stay absent."""
    params: Params = {}
    for source, targets in PROJECTIONS.items():
        for key, name in ((f"{source}.weight", "kernel"), (f"{source}.bias", "bias")):
            if key in torch_weights:
                for target, part in zip(
                    targets, np.split(torch_weights[key], len(targets)), strict=True
                ):
                    params.setdefault(target, {})[name] = part.T
    if "dwc.weight" in torch_weights:
        kernel = torch_weights["dwc.weight"][:, 0].transpose(1, 2, 0)
        params["dwc"] = {"kernel": kernel, "bias": torch_weights["dwc.bias"]}
    if "scale" in torch_weights:
        params["scale"] = torch_weights["scale"]
    if "positional_encoding" in torch_weights:
        params["position"] = torch_weights["positional_encoding"]
    return params


def mixer_config(mixer: str, grid: tuple[int, int], **fields: Any) -> DiTConfig:
    """A configuration whose token grid is `grid`."""
    return DiTConfig(mixer=mixer, input_size=grid, patch_size=1, **fields)


@functools.cache
def mixer_fn(config: DiTConfig) -> Callable[[Params, jax.Array], jax.Array]:
    """`f(params, x [B, N, D]) -> [B, N, D]` of the mixer of `config`, one per configuration."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: new_mixer(config)))

    def apply(params: Params, x: jax.Array) -> jax.Array:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graphdef, filled)(x, config.grid)

    return apply


def new_mixer(config: DiTConfig, seed: int = 0) -> Any:
    """A freshly initialised mixer."""
    build: Any = mixer_class(config.mixer)
    return build(config, rngs=nnx.Rngs(seed))


def new_params(config: DiTConfig, seed: int = 0) -> Params:
    """Parameters of a mixer of unit scale, none of them zero, drawn without compiling anything."""
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: new_mixer(config))))
    return random_like(abstract, seed)


def random_like(abstract: Params, seed: int = 0) -> Params:
    """N(0, 1/fan_in) matrices, other leaves 0.3 N(0, 1), for a tree of shapes."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = 1 / np.sqrt(leaf.shape[-2]) if len(leaf.shape) > 1 and leaf.shape[-2] > 1 else 0.3
        return (scale * rng.normal(size=leaf.shape)).astype("f4")

    return jax.tree.map(draw, abstract)


def golden_mixer(meta: Mapping[str, Any], mixer: str) -> DiTConfig:
    """The configuration of one case of lit_attention."""
    return mixer_config(
        mixer,
        tuple(meta["HW"]),
        hidden_size=meta["dim"],
        num_heads=meta["num_heads"],
        qkv_bias=meta["qkv_bias"],
        kernel_size=meta["kernel_size"],
        kernel_fn=meta["act"],
    )


def golden_cases(prefix: str) -> list[Any]:
    """pytest parameters (folder, case) of lit_attention for the cases that start with `prefix`."""
    return [
        pytest.param(folder, case, id=f"{case}-{source.id}")
        for source in golden_sources("lit_attention.npz")
        for folder in source.values
        for case in load_meta(folder, "lit_attention")["cases"]
        if case.startswith(prefix) and f"{case}/x" in golden_arrays(folder)
    ]


@functools.cache
def golden_arrays(folder: Path) -> dict[str, np.ndarray]:
    return load_arrays(folder, "lit_attention")


@functools.cache
def golden_weights(folder: Path) -> dict[str, np.ndarray]:
    return load_state_dict(folder, "lit_attention")


def of_case(stored: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries below `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


@functools.cache
def value_and_gradients(config: DiTConfig) -> Callable[..., Any]:
    """Compiled `f(params, x, R) -> (out, (d params, d x))` of the loss sum(out * R)."""

    def loss(params: Params, x: jax.Array, R: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = mixer_fn(config)(params, x)
        return jnp.sum(out * R), out

    def both(params: Params, x: jax.Array, R: jax.Array) -> tuple[jax.Array, Any]:
        (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x, R)
        return out, gradients

    return jax.jit(both)


def golden_errors(folder: Path, case: str, mixer: str) -> tuple[float, dict[str, float]]:
    """Relative error of the output, and of every gradient the folder has, by name."""
    config = golden_mixer(load_meta(folder, "lit_attention")["cases"][case], mixer)
    arrays = of_case(golden_arrays(folder), f"{case}/")
    params = attention_params(of_case(golden_weights(folder), f"{case}/"))
    x = arrays["x"]
    out, (for_params, for_x) = value_and_gradients(config)(params, x, arrays.get("R", x))
    errors = {}
    if "grad_x" in arrays:
        errors["x"] = relative_error(for_x, arrays["grad_x"])
        expected = attention_params(of_case(arrays, "grad:"))
        assert jax.tree.structure(expected) == jax.tree.structure(params), "a gradient is missing"
        for (path, value), target in zip(
            jax.tree.leaves_with_path(for_params), jax.tree.leaves(expected), strict=True
        ):
            errors[jax.tree_util.keystr(path)] = relative_error(value, target)
    return relative_error(out, arrays["out"]), errors


def assert_golden(folder: Path, case: str, mixer: str) -> None:
    """Output to 1e-5 and gradients to 5e-5; GELU denominators can be small: wider tolerance."""
    out, gradients = golden_errors(folder, case, mixer)
    gelu = "gelu" in case
    assert out < (5e-5 if gelu else 1e-5)
    limit = 1e-4 if gelu else 5e-5
    assert {name: error for name, error in gradients.items() if not error < limit} == {}
