"""The cost job: parameters, products and memory of models against resolution.

    closed forms                       -> MACs and parameters by component, every resolution
    compiler, up to --compile_up_to    -> operations and memory of a forward pass and of a step
    both                               -> OUT/cost.json, cost.md (the tables), cost_*.png

Every count of the compiler is kept in OUT/compiled.json when it is made, so that the same command
resumes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lit_jax.commands.cost.checks import Plan, check
from lit_jax.commands.cost.compiled import PROGRAMS, count
from lit_jax.commands.cost.figures import heads_table, keys_table, write_figures
from lit_jax.commands.cost.tables import tables
from lit_jax.config.cost import CostConfig
from lit_jax.models import cost as closed_forms
from lit_jax.models.attention.softmax import softmax_macs
from lit_jax.models.registry import DenoiserConfig
from lit_jax.runs.hosts import log_on_first_process as log
from lit_jax.runs.progress import Bar
from lit_jax.runs.requests import REQUEST
from lit_jax.storage import files

RECORD, TABLES, COMPILED = "cost.json", "cost.md", "compiled.json"

Counts = dict[str, dict[str, Any]]
""""MODEL at RESOLUTION, PROGRAM" -> the fields of a `Counted`."""


def cost(config: CostConfig) -> Path:
    """Run the job; return its folder. Raises ValueError as `cost_checks.check`."""
    plan = check(config)
    if (plan.out / RECORD).exists():
        (plan.out / COMPILED).unlink(missing_ok=True)
        log(f"{(plan.out / TABLES).read_text()}\nalready counted: {plan.out}")
        return plan.out
    if not (plan.out / REQUEST).exists():
        files.write_json(plan.out / REQUEST, plan.request)
    counts = compiler_counts(plan)
    content = {
        "request": plan.request,
        "models": {
            text: {
                str(side): closed(network) | compiled(counts, text, side)
                for side, network in of_model.items()
            }
            for text, of_model in plan.networks.items()
        },
        "heads": heads_table(),
        "window_keys": keys_table(),
    }
    text = tables(content)
    files.write_text(plan.out / TABLES, text)
    write_figures(plan.out, content)
    files.write_json(plan.out / RECORD, content)
    (plan.out / COMPILED).unlink(missing_ok=True)
    log(f"{text}\nwrote {plan.out}")
    return plan.out


def closed(network: DenoiserConfig) -> dict[str, Any]:
    """Return what the closed forms say of one network, per image."""
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
    """Return what the compiler says of one network; {} beyond the resolutions it was asked for."""
    found = {program: counts.get(_name(text, side, program)) for program in PROGRAMS}
    return {"compiled": {program: one for program, one in found.items() if one is not None}}


def compiler_counts(plan: Plan) -> Counts:
    """Return the counts of every program of the plan, those of an earlier run included."""
    file = plan.out / COMPILED
    counts: Counts = json.loads(file.read_text()) if file.exists() else {}
    missing = [entry for entry in plan.programs() if _name(*entry) not in counts]
    with Bar("compiling", len(missing), "program", log) as bar:
        for text, side, program in missing:
            build = PROGRAMS[program]
            counted = count(build(plan.networks[text][side], plan.config.batch_size))
            counts[_name(text, side, program)] = dataclasses.asdict(counted)
            files.write_json(file, counts)
            bar()
    return counts
