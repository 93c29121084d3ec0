"""A functional view of any network: its parameters as a plain tree, and pure functions of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx, traverse_util
from jax.sharding import Mesh

from lit_jax.models.layers import Buffer
from lit_jax.models.registry import NetworkConfig, family_of, model_config, roles_of
from lit_jax.sharding import tree_shardings

Params = dict[str, Any]
"""Nested dict of arrays, e.g. params["blocks"]["attn"]["q"]["kernel"]."""


def build(config: NetworkConfig, rngs: nnx.Rngs) -> Any:
    """Return the freshly initialised module that `config` describes."""
    return family_of(config).load_module()(config, rngs=rngs)


def create_model(name: str, *, seed: int = 0, **overrides: Any) -> Any:
    """Return a freshly initialised model.

    `create_model("LiT-XL/2")`, or a family with the official argument names:
    `create_model("DiT", hidden_size=96, depth=3, num_heads=4, patch_size=2, input_size=16)`.
    Wrap the call in `nnx.eval_shape` to get shapes without memory.
    """
    return build(model_config(name, **overrides), nnx.Rngs(seed))


def pure_params(state: nnx.State) -> Params:
    """Return a state as nested dicts with string keys; the entries of a list are "0", "1", ..."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return traverse_util.unflatten_dict({tuple(map(str, path)): v for path, v in flat.items()})


def init_params(config: NetworkConfig, key: jax.Array) -> Params:
    """Return initial parameters as a plain nested dict; pure, so it can be jitted with
    out_shardings."""
    return pure_params(nnx.state(build(config, nnx.Rngs(key)), nnx.Any(nnx.Param, Buffer)))


@functools.lru_cache(maxsize=64)
def _abstract_model(config: NetworkConfig) -> tuple[nnx.GraphDef[Any], nnx.State]:
    # Building a network of hundreds of unlike modules takes a second, and a job asks several times.
    return nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))))


def abstract_model(config: NetworkConfig) -> tuple[nnx.GraphDef[Any], nnx.State]:
    """Return graph definition and abstract state, the static half of the functional core."""
    graphdef, state = _abstract_model(config)
    return graphdef, jax.tree.map(lambda leaf: leaf, state)


def abstract_params(config: NetworkConfig) -> Params:
    """Return shapes and dtypes of the parameters, without allocating any."""
    shapes: Params = jax.tree.map(lambda leaf: leaf, pure_params(_abstract_model(config)[1]))
    return shapes


def parameter(params: Params, path: str) -> Any:
    """Return the leaf at a path such as "blocks/attn/q/kernel"."""
    for name in path.split("/"):
        params = params[name]
    return params


def with_parameter(params: Params, path: str, leaf: Any) -> Params:
    """Return `params` with the leaf at `path` set; everything else is shared."""
    name, _, rest = path.partition("/")
    value = with_parameter(params.get(name, {}), rest, leaf) if rest else leaf
    return {**params, name: value}


def null_caption(config: Any, params: Params) -> Any:
    """Return the encoding of the empty caption [tokens, channels] of a denoiser on captions."""
    return parameter(params, roles_of(config).null_caption)


def shardings(config: NetworkConfig, mesh: Mesh, tree: Any = None) -> Any:
    """Return a NamedSharding per parameter, or per leaf of `tree`, a state that holds parameters
    under longer paths."""
    abstract = abstract_params(config) if tree is None else tree
    return tree_shardings(abstract, mesh, family_of(config).rules(config))


def buffer_paths(config: NetworkConfig) -> tuple[str, ...]:
    """Return paths of the arrays in the parameter tree that are never trained, such as a null
    caption."""
    graphdef, state = _abstract_model(config)
    buffers = nnx.state(nnx.merge(graphdef, state), Buffer)
    return tuple("/".join(path) for path in traverse_util.flatten_dict(pure_params(buffers)))


def with_params(config: NetworkConfig, params: Params) -> Any:
    """Return the model holding `params`; raise ValueError if the tree does not fit."""
    graphdef, state = abstract_model(config)
    _check_tree(params, pure_params(state))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def _check_tree(params: Params, expected: Params) -> None:
    """Raise ValueError naming every parameter that is missing, unknown or of another shape."""
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
    """Return `f(params, *inputs) -> output`, the pure function of a network, or of another of its
    methods; for a denoiser the inputs are x, t and cond."""

    def apply(params: Params, *inputs: Any) -> Any:
        return getattr(with_params(config, params), method)(*inputs)

    return apply


def count_params(params: Params) -> int:
    """Return number of scalars in a parameter tree (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
