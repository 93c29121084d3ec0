"""`python -m lit_jax cost`: parameters, products and memory of models against resolution.

    closed forms                       -> MACs and parameters by component, every resolution
    compiler, up to --compile_up_to    -> operations and memory of a forward pass and of a step
    both                               -> OUT/cost.json, cost.md (the tables), cost_*.png

Every count of the compiler is kept in OUT/compiled.json as it is made, so that the same
command resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lit_jax.commands.cost.checks import Plan, check
from lit_jax.commands.cost.compiled import PROGRAMS, count
from lit_jax.commands.cost.figures import write_figures
from lit_jax.commands.cost.tables import tables
from lit_jax.config.cost import CostConfig
from lit_jax.models import cost as closed_forms
from lit_jax.models.attention.softmax import softmax_macs
from lit_jax.models.registry import DenoiserConfig
from lit_jax.runs.hosts import log_on_first_process as log
from lit_jax.runs.output import Output
from lit_jax.runs.progress import Progress
from lit_jax.storage import files

RECORD, TABLES, COMPILED = "cost.json", "cost.md", "compiled.json"

Counts = dict[str, dict[str, Any]]
""""MODEL at RESOLUTION, PROGRAM" -> the fields of a `Counted`."""


def cost(config: CostConfig) -> Path:
    """Count the models of `config`; return the folder. Raises ValueError for a job that cannot
    work."""
    plan = check(config)
    with Output.open(plan.out, plan.request, RECORD) as output:
        if output.done:
            log(f"{(plan.out / TABLES).read_text()}\nalready counted: {plan.out}")
            return plan.out
        output.begin()
        counts = compiler_counts(plan, output)
        content = {
            "request": output.request,
            "models": {
                text: {
                    str(side): closed(network) | compiled(counts, text, side)
                    for side, network in of_model.items()
                }
                for text, of_model in plan.networks.items()
            },
        }
        text = tables(content)
        files.write_text(plan.out / TABLES, text)
        write_figures(plan.out, content)
        output.close(lambda: content)
        (plan.out / COMPILED).unlink(missing_ok=True)
    log(f"{text}\nwrote {plan.out}")
    return plan.out


def closed(network: DenoiserConfig) -> dict[str, Any]:
    """Return the closed forms of one network, per image."""
    macs = closed_forms.forward_components(network)
    softmax = network.depth * softmax_macs(network)["attention"]
    return {
        "tokens": network.num_tokens,
        "parameters": closed_forms.parameter_components(network),
        "macs": macs,
        "forward_macs": closed_forms.forward_macs(network),
        "attention_macs_as_printed": closed_forms.attention_macs(network),
        "core_of_softmax_core": macs["attention"] / softmax,
        "train_step_flops": closed_forms.train_step_flops(network, 1),
    }


def _name(text: str, side: int, program: str) -> str:
    return f"{text} at {side}, {program}"


def compiled(counts: Counts, text: str, side: int) -> dict[str, Any]:
    """Return the counts of the compiler of one network; {} beyond the compiled resolutions."""
    found = {program: counts.get(_name(text, side, program)) for program in PROGRAMS}
    return {"compiled": {program: one for program, one in found.items() if one is not None}}


def compiler_counts(plan: Plan, output: Output) -> Counts:
    """Return the counts of every program of the plan, those of an earlier run included."""
    file = output.path / COMPILED
    counts: Counts = json.loads(file.read_text()) if file.exists() else {}
    missing = [entry for entry in plan.programs() if _name(*entry) not in counts]
    with Progress("compiling", len(missing), "program", log) as progress:
        for text, side, program in missing:
            build = PROGRAMS[program]
            counted = count(build(plan.networks[text][side], plan.config.batch_size))
            counts[_name(text, side, program)] = dataclasses.asdict(counted)
            files.write_json(file, counts)
            progress.advance()
    return counts
