"""Family of the tests: a transformer whose attention and MLP read the same input."""

from __future__ import annotations

from lit_jax.models.family import Family, Positions, lazy
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.transformer.macs import BLOCK_COMPONENTS, backbone_macs
from lit_jax.models.transformer.placement import TRANSFORMER
from lit_jax.models.transformer.roles import LABELLED
from support.additions.parallel.config import ParallelConfig
from support.additions.parallel.torch_keys import DETECTOR, LAYOUTS


def macs(config: ParallelConfig) -> dict[str, int]:
    """Return the MACs of a forward pass per image by component."""
    D, total = config.hidden_size, backbone_macs(config)
    total["modulation"] = config.depth * 3 * D * D
    total["final_layer"] += 2 * D * D
    return total


FAMILY = Family(
    name="Parallel",
    config=ParallelConfig,
    module="support.additions.parallel.model:Parallel",
    members={"Parallel": {"family": "Parallel"}},
    layouts=LAYOUTS,
    detect=DETECTOR,
    condition="label",
    process="gaussian",
    sharding=TRANSFORMER,
    macs=lazy("support.additions.parallel:macs"),
    components=BLOCK_COMPONENTS,
    roles=LABELLED,
    positions=Positions(lambda c: sincos_position_table(c.grid, c.hidden_size), strict=True),
    sizes={"Parallel-T/2": {"family": "Parallel", "hidden_size": 16, "depth": 2, "num_heads": 2}},
)
