"""DiG: gated linear attention on class labels."""

from __future__ import annotations

from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dig.detect import DETECTOR
from lit_jax.models.dig.torch_keys import LAYOUTS
from lit_jax.models.family import Family, Positions, lazy
from lit_jax.models.position_tables import sincos_position_table
from lit_jax.models.transformer.macs import BLOCK_COMPONENTS
from lit_jax.models.transformer.placement import TRANSFORMER
from lit_jax.models.transformer.roles import LABELLED
from lit_jax.models.transformer.sizes import named_sizes

_DIG = {"family": "DiG", "num_heads": 18}


def note(config: DiGConfig) -> str:
    """Return the remark on the scan order, which leaves no trace in a checkpoint."""
    return (
        "no tensor records in which order a DiG scans its tokens; assumed:"
        f" bid_mode={config.bid_mode!r}, quad_dir={config.quad_dir}, as in the published models"
        " unless --set gives another one"
    )


FAMILY = Family(
    name="DiG",
    config=DiGConfig,
    module="lit_jax.models.dig.model:DiG",
    members={"DiG": _DIG},
    layouts=LAYOUTS,
    detect=DETECTOR,
    condition="label",
    process="gaussian",
    sharding=(
        *TRANSFORMER,
        (r"skip/kernel", (None, "fsdp", None)),
        (r"blocks/dwc/kernel", ()),
    ),
    macs=lazy("lit_jax.models.dig.macs:macs"),
    components=BLOCK_COMPONENTS,
    roles=LABELLED,
    positions=Positions(lambda c: sincos_position_table(c.grid, c.hidden_size), strict=True),
    note=note,
    sizes=named_sizes("DiG", _DIG, "gated"),
    aliases={
        "if_skip": "skip",
        "if_zero_init_skip": "skip_zero",
        "if_dw_conv": "dw_conv",
        "if_quad_dir": "quad_dir",
    },
)
