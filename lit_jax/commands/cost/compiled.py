"""Counts of the compiler: operations and memory of the programs that `sample` and `train` run.

Nothing is allocated: the programs are compiled for arrays that have a shape only.

XLA counts the body of a loop once, however often it runs, and our networks loop over layers, tiles
and chunks. So every loop of the traced program is compiled on its own, too, and counted as often as
it runs: operations = program + sum over loops of (length x body - copies of the body within the
program), the same for the loops inside of bodies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from lit_jax.config import DistillConfig, EmaConfig, OptimizerConfig
from lit_jax.models import functional
from lit_jax.models.conditions import TextCondition, abstract_condition
from lit_jax.models.registry import DenoiserConfig, family_of
from lit_jax.objectives import hybrid_objective
from lit_jax.sampling.sampler import make_process
from lit_jax.training.batch import condition_of
from lit_jax.training.optimizer import frozen_mask, make_optimizer
from lit_jax.training.state import create_state
from lit_jax.training.step import Task, train_step

Program = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]
"""A function, its abstract arguments, and the places of those it may overwrite."""


@dataclass(frozen=True)
class Counted:
    """The compiler's count of one program. `flops`: additions and multiplications of numbers, so
    two per MAC, and what is not a product, too; exponentials and the like are not in it. Bytes:
    `arguments` (parameters and inputs; for a training step its whole state), `temporary` (what it
    allocates meanwhile), and `peak`, both plus the outputs that overwrite no argument."""

    flops: float
    arguments: int
    temporary: int
    peak: int


def count(program: Program) -> Counted:
    """Compile a program and reads the compiler's analyses of it.

    Raises ValueError for a loop whose length the program decides while it runs.
    """
    function, arguments, overwritten = program
    traced = jax.jit(function, donate_argnums=overwritten).trace(*arguments)
    compiled = _compiled(traced.lower())
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError(f"the compiler for {jax.default_backend()} does not say what it allocates")
    held, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops = _flops(compiled) + _further_iterations(traced.jaxpr.jaxpr)
    return Counted(flops, held, temporary, held + temporary + fresh)


# Operations and buffers are decided before machine code is made, whose optimisation takes longer.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 0}}


def _compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    return lowered.compile(COMPILER_OPTIONS.get(jax.default_backend()))


def _flops(compiled: jax.stages.Compiled) -> float:
    analysis: Any = compiled.cost_analysis()
    return float(analysis["flops"])


def _further_iterations(jaxpr: Any) -> float:
    """Return operations of all loops in `jaxpr` beyond what a count of the whole contains of
    them."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            raise ValueError(
                "a loop without a fixed length cannot be counted; write it as jax.lax.scan"
            )
        if equation.primitive.name == "scan":
            length, unroll = equation.params["length"], equation.params["unroll"]
            body = equation.params["jaxpr"]
            # An unrolled loop holds `unroll` copies of its body, and the remainder follows it.
            copies = length if unroll >= length else unroll + length % unroll
            if copies < length:
                once = _body_flops(body)
                total += length * (once + _further_iterations(body.jaxpr)) - copies * once
            else:
                total += length * _further_iterations(body.jaxpr)
        else:
            total += sum(_further_iterations(inner) for inner in _inner_programs(equation.params))
    return total


def _body_flops(body: Any) -> float:
    abstract = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
    return _flops(_compiled(jax.jit(jax.extend.core.jaxpr_as_fun(body)).lower(*abstract)))


def _inner_programs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs that an equation calls: of jit, checkpoint, functions with their own
    gradient; of a condition all branches."""
    for value in parameters.values():
        for entry in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(entry, jax.extend.core.ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, jax.extend.core.Jaxpr):
                yield entry


def forward_program(config: DenoiserConfig, batch_size: int) -> Program:
    """Return one evaluation of the network, as a sampler makes them."""
    x = jax.ShapeDtypeStruct((batch_size, *config.image_size, config.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    params = functional.abstract_params(config)
    return functional.apply_fn(config), (params, x, t, abstract_condition(config, batch_size)), ()


def train_program(config: DenoiserConfig, batch_size: int) -> Program:
    """Return one training step without a teacher, with AdamW and the moving average, as `train`
    runs them. Its state is overwritten. Raises ValueError for a model that `train` cannot train."""
    if (reason := family_of(config).untrained(config)) is not None:
        raise ValueError(reason)
    shapes = functional.abstract_params(config)
    frozen = frozen_mask(shapes, functional.buffer_paths(config))
    optimizer = make_optimizer(OptimizerConfig(), 0, frozen, config)
    process = make_process(config, "")
    task = Task(
        student=functional.apply_fn(config),
        teacher=None,
        process=process,
        objective=hybrid_objective(process, DistillConfig()),
        optimizer=optimizer,
        ema=EmaConfig(),
        accumulation=1,
        seed=0,
        condition_of=condition_of(config),
    )
    state = jax.eval_shape(lambda params: create_state(params, optimizer), shapes)
    image = (batch_size, *config.image_size, config.in_channels)
    batch = {"image": jax.ShapeDtypeStruct(image, jnp.float32)}
    cond = abstract_condition(config, batch_size)
    if isinstance(cond, TextCondition):
        batch |= {"tokens": cond.tokens, "mask": cond.mask}
    elif cond is not None:
        batch["label"] = cond
    return functools.partial(train_step, task), (state, {}, batch), (0,)


PROGRAMS: dict[str, Callable[[DenoiserConfig, int], Program]] = {
    "forward": forward_program,
    "train": train_program,
}
