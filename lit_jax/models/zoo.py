"""The named models, and a functional view of any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from lit_jax.config import DiTConfig, from_mapping, unknown_name
from lit_jax.models.dit import DiT, dtype_name

Params = dict[str, Any]
"""Nested dict of arrays, e.g. params["blocks"]["attn"]["q"]["kernel"]."""

# DiT paper, Table 1, and LiT paper, section 4: depth, hidden size, softmax heads, linear heads.
BACKBONES = {
    "S": (12, 384, 6, 2),
    "B": (12, 768, 12, 3),
    "L": (24, 1024, 16, 4),
    "XL": (28, 1152, 16, 4),
}
PATCH_SIZES = (2, 4, 8)

FAMILIES: dict[str, dict[str, Any]] = {
    "DiT": {"family": "DiT", "mixer": "softmax", "num_heads": 16},
    "LiT": {"family": "LiT", "mixer": "linear", "num_heads": 4},
}


def _sizes() -> dict[str, dict[str, Any]]:
    rows = {}
    for size, (depth, width, softmax_heads, linear_heads) in BACKBONES.items():
        for patch in PATCH_SIZES:
            shape = {"depth": depth, "hidden_size": width, "patch_size": patch}
            for family, heads in (("DiT", softmax_heads), ("LiT", linear_heads)):
                rows[f"{family}-{size}/{patch}"] = FAMILIES[family] | shape | {"num_heads": heads}
    return rows


SIZES = _sizes()
"""Named models: "DiT-S/2" ... "LiT-XL/8" -> fields of DiTConfig."""


def model_config(name: str, **overrides: Any) -> DiTConfig:
    """The configuration of a named size or of a family, with `overrides` of any DiTConfig field.

    `dtype` may be a name, a numpy dtype or a scalar type like `jnp.bfloat16`. Raises ValueError for
    an unknown name or field, listing the known ones, and for a value of another type.
    """
    rows = SIZES | FAMILIES
    if name not in rows:
        raise unknown_name("model", name, rows)
    known = [f.name for f in dataclasses.fields(DiTConfig)]
    for key in overrides:
        if key not in known:
            raise unknown_name(f"argument of {name}", key, known)
    if "dtype" in overrides:
        overrides["dtype"] = dtype_name(overrides["dtype"])
    return from_mapping(DiTConfig, rows[name] | overrides, name)


def create_model(name: str, *, seed: int = 0, **overrides: Any) -> DiT:
    """A freshly initialised model.

    `create_model("LiT-XL/2")`, or a family with the official argument names:
    `create_model("DiT", hidden_size=96, depth=3, num_heads=4, patch_size=2, input_size=16)`.
    Wrap the call in `nnx.eval_shape` to get shapes without memory.
    """
    return DiT(model_config(name, **overrides), rngs=nnx.Rngs(seed))


def init_params(config: DiTConfig, key: jax.Array) -> Params:
    """Initial parameters as a plain nested dict; pure, so it can be jitted with out_shardings."""
    return nnx.to_pure_dict(nnx.state(DiT(config, rngs=nnx.Rngs(key)), nnx.Param))


def abstract_params(config: DiTConfig) -> Params:
    """Shapes and dtypes of the parameters, without allocating any."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def abstract_model(config: DiTConfig) -> tuple[nnx.GraphDef[DiT], nnx.State]:
    """Graph definition and abstract state, the static half of the functional core."""
    return nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))


def with_params(config: DiTConfig, params: Params) -> DiT:
    """The model holding `params`; raises ValueError if the tree does not fit."""
    graphdef, state = abstract_model(config)
    _check_tree(params, nnx.to_pure_dict(state))
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


def apply_fn(config: DiTConfig) -> Callable[..., jax.Array]:
    """`f(params, x, t, cond) -> output`, the pure function of the network."""

    def apply(params: Params, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> jax.Array:
        return with_params(config, params)(x, t, cond)

    return apply


def count_params(params: Params) -> int:
    """Number of scalars in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
