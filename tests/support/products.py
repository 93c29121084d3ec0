"""Products of a traced program, to compare with a closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from lit_jax.models import functional
from lit_jax.models.conditions import abstract_condition
from lit_jax.models.registry import DenoiserConfig


def products(jaxpr: Any) -> int:
    """Return the multiply-accumulates of all products of matrices in a traced program, loops
    included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += summed * equation.outvars[0].aval.size
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(map(products, inner(equation.params)))
    return total


def inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        if isinstance(value, jax.extend.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jax.extend.core.Jaxpr):
            yield value


def traced_products(config: DenoiserConfig) -> int:
    """Return the products of one forward pass of one image."""
    x = jax.ShapeDtypeStruct((1, *config.image_size, config.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    arguments = (functional.abstract_params(config), x, t, abstract_condition(config, 1))
    return products(jax.make_jaxpr(functional.apply_fn(config))(*arguments).jaxpr)
