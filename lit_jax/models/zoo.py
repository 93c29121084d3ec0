"""The named models, and a functional view of any of them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx, traverse_util

from lit_jax.config import (
    AutoencoderConfig,
    DiGConfig,
    DiTConfig,
    InceptionConfig,
    NetworkConfig,
    PixArtConfig,
    T5Config,
    autoencoder,
    config_class,
    from_mapping,
    t5,
    unknown_name,
)
from lit_jax.models.dit import dtype_name
from lit_jax.models.layers import Buffer

Params = dict[str, Any]
"""Nested dict of arrays, e.g. params["blocks"]["attn"]["q"]["kernel"]."""

# DiT paper, Table 1, LiT paper, section 4, and DiG's published models: depth, hidden size, and the
# heads of softmax attention, linear attention and gated linear attention.
BACKBONES = {
    "S": (12, 384, 6, 2, 6),
    "B": (12, 768, 12, 3, 12),
    "L": (24, 1024, 16, 4, 16),
    "XL": (28, 1152, 16, 4, 18),
}
PATCH_SIZES = (2, 4, 8)

FAMILIES: dict[str, dict[str, Any]] = {
    "DiT": {"family": "DiT", "mixer": "softmax", "num_heads": 16},
    "LiT": {"family": "LiT", "mixer": "linear", "num_heads": 4},
    "CLEAR": {"family": "CLEAR", "mixer": "window", "num_heads": 16},
    "DiG": {"family": "DiG", "num_heads": 18},
    "PixArt": {"family": "PixArt", "mixer": "softmax", "num_heads": 16},
    "AutoencoderKL": {"family": "AutoencoderKL"},
    "T5": {"family": "T5"},
    "Inception": {"family": "Inception"},
}

# PixArt-alpha and PixArt-Sigma share one backbone; LiT-0.6B is the same with two linear heads
# (LiT paper, section 4). 512 px; other resolutions set input_size and pe_interpolation.
_XL = {"depth": 28, "hidden_size": 1152, "patch_size": 2}
TEXT_SIZES: dict[str, dict[str, Any]] = {
    "PixArt-Alpha-XL/2": FAMILIES["PixArt"] | _XL | {"model_max_length": 120},
    "PixArt-Sigma-XL/2": FAMILIES["PixArt"] | _XL | {"model_max_length": 300},
    "LiT-0.6B": FAMILIES["PixArt"] | _XL | {"mixer": "linear", "num_heads": 2},
    "CLEAR-PixArt-Sigma-XL/2": FAMILIES["PixArt"] | _XL | {"mixer": "window"},
}


def _sizes() -> dict[str, dict[str, Any]]:
    rows = {}
    for size, (depth, width, softmax, linear, gated) in BACKBONES.items():
        heads = {"DiT": softmax, "LiT": linear, "CLEAR": softmax, "DiG": gated}
        for patch in PATCH_SIZES:
            shape = {"depth": depth, "hidden_size": width, "patch_size": patch}
            for family, count in heads.items():
                rows[f"{family}-{size}/{patch}"] = FAMILIES[family] | shape | {"num_heads": count}
    rows |= TEXT_SIZES
    for family, sizes in (("AutoencoderKL", autoencoder.SIZES), ("T5", t5.SIZES)):
        rows |= {name: FAMILIES[family] | row for name, row in sizes.items()}
    return rows


SIZES = _sizes()
"""Named models: "DiT-S/2" ... "LiT-0.6B", "SD-VAE", "T5-v1.1-XXL" -> fields of their config."""

ALIASES = {
    "pred_sigma": "learn_sigma",
    "if_skip": "skip",
    "if_zero_init_skip": "skip_zero",
    "if_dw_conv": "dw_conv",
    "if_quad_dir": "quad_dir",
}
"""Official argument names of PixArt and DiG -> what this package calls them."""

MODULES: dict[type, tuple[str, str]] = {
    DiTConfig: ("lit_jax.models.dit", "DiT"),
    DiGConfig: ("lit_jax.models.dig", "DiG"),
    PixArtConfig: ("lit_jax.models.pixart", "PixArt"),
    AutoencoderConfig: ("lit_jax.models.autoencoder", "AutoencoderKL"),
    T5Config: ("lit_jax.models.t5", "T5Encoder"),
    InceptionConfig: ("lit_jax.models.inception", "FIDInception"),
}
"""Configuration -> (module, class), so that a DiT does not pay for importing a VAE."""


def model_family(name: str) -> str:
    """The family of a named size, or of a family's own name; ValueError for any other."""
    rows = SIZES | FAMILIES
    if name not in rows:
        raise unknown_name("model", name, rows)
    return str(rows[name]["family"])


def model_config(name: str, **overrides: Any) -> Any:
    """The configuration of a named size or of a family, with `overrides` of any of its fields.

    `dtype` may be a name, a numpy dtype or a scalar type like `jnp.bfloat16`. Raises ValueError for
    an unknown name or field, listing the known ones, and for a value of another type.
    """
    rows = SIZES | FAMILIES
    cls = config_class(model_family(name))
    known = [f.name for f in dataclasses.fields(cls)]
    overrides = {ALIASES.get(k, k) if k not in known else k: v for k, v in overrides.items()}
    for key in overrides:
        if key not in known:
            raise unknown_name(f"argument of {name}", key, known)
    if "dtype" in overrides:
        overrides["dtype"] = dtype_name(overrides["dtype"])
    return from_mapping(cls, rows[name] | overrides, name)


def build(config: NetworkConfig, rngs: nnx.Rngs) -> Any:
    """The freshly initialised module that `config` describes."""
    module, name = MODULES[type(config)]
    return getattr(importlib.import_module(module), name)(config, rngs=rngs)


def create_model(name: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A freshly initialised model.

    `create_model("LiT-XL/2")`, or a family with the official argument names:
    `create_model("DiT", hidden_size=96, depth=3, num_heads=4, patch_size=2, input_size=16)`.
    Wrap the call in `nnx.eval_shape` to get shapes without memory.
    """
    return build(model_config(name, **overrides), nnx.Rngs(seed))


def pure_params(state: nnx.State) -> Params:
    """A state as nested dicts with string keys; the entries of a list are "0", "1", ..."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return traverse_util.unflatten_dict({tuple(map(str, path)): v for path, v in flat.items()})


def init_params(config: NetworkConfig, key: jax.Array) -> Params:
    """Initial parameters as a plain nested dict; pure, so it can be jitted with out_shardings."""
    return pure_params(nnx.state(build(config, nnx.Rngs(key)), nnx.Any(nnx.Param, Buffer)))


@functools.lru_cache(maxsize=64)
def _abstract_model(config: NetworkConfig) -> tuple[nnx.GraphDef[Any], nnx.State]:
    # Building a network of hundreds of unlike modules takes a second, and a job asks several times.
    return nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))))


def abstract_model(config: NetworkConfig) -> tuple[nnx.GraphDef[Any], nnx.State]:
    """Graph definition and abstract state, the static half of the functional core."""
    graphdef, state = _abstract_model(config)
    return graphdef, jax.tree.map(lambda leaf: leaf, state)


def abstract_params(config: NetworkConfig) -> Params:
    """Shapes and dtypes of the parameters, without allocating any."""
    shapes: Params = jax.tree.map(lambda leaf: leaf, pure_params(_abstract_model(config)[1]))
    return shapes


def buffer_paths(config: NetworkConfig) -> tuple[str, ...]:
    """Paths of the arrays in the parameter tree that are never trained, such as a null caption."""
    graphdef, state = _abstract_model(config)
    buffers = nnx.state(nnx.merge(graphdef, state), Buffer)
    return tuple("/".join(path) for path in traverse_util.flatten_dict(pure_params(buffers)))


def with_params(config: NetworkConfig, params: Params) -> Any:
    """The model holding `params`; raises ValueError if the tree does not fit."""
    graphdef, state = abstract_model(config)
    _check_tree(params, pure_params(state))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def _check_tree(params: Params, expected: Params) -> None:
    """Raises ValueError naming every parameter that is missing, unknown or of another shape."""
    ours, wanted = (
        {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree.leaves_with_path, (params, expected))
    )
    problems = [f"{path} is missing" for path in wanted if path not in ours]
    problems += [f"{path} does not belong to this model" for path in ours if path not in wanted]
    problems += [
        f"{path} has shape {ours[path]}, expected {shape}"
        for path, shape in wanted.items()
        if path in ours and ours[path] != shape
    ]
    if problems:
        raise ValueError("the parameters are not those of the config:\n  " + "\n  ".join(problems))


def apply_fn(config: NetworkConfig, method: str = "__call__") -> Callable[..., Any]:
    """`f(params, *inputs) -> output`, the pure function of a network, or of another of its methods;
    for a denoiser the inputs are x, t and cond."""

    def apply(params: Params, *inputs: Any) -> Any:
        return getattr(with_params(config, params), method)(*inputs)

    return apply


def count_params(params: Params) -> int:
    """Number of scalars in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
