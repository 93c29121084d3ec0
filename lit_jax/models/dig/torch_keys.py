"""DiG on class labels: the official layout."""

from __future__ import annotations

from lit_jax.keymap.rows import Layout, Row, linear
from lit_jax.models.dig.config import DiGConfig
from lit_jax.models.dit.torch_keys import POS_EMBED

_BLOCK = "blocks.{block}"


def _second_half(config: DiGConfig) -> range:
    """Return the layers that have a skip connection."""
    return range(config.depth - config.skips, config.depth)


# hustvl/DiG models_dig.py and module_dig.py.
_ROWS = (
    Row("x_embedder.proj.weight", ("x_embedder/kernel",), "patch"),
    Row("x_embedder.proj.bias", ("x_embedder/bias",), "as_is"),
    *linear("t_embedder.mlp.0", "t_embedder/fc1"),
    *linear("t_embedder.mlp.2", "t_embedder/fc2"),
    Row("y_embedder.embedding_table.weight", ("y_embedder/embedding",), "as_is"),
    Row(f"{_BLOCK}.attn.q_proj.weight", ("blocks/attn/q/kernel",), "dense"),
    Row(f"{_BLOCK}.attn.k_proj.weight", ("blocks/attn/k/kernel",), "dense"),
    Row(f"{_BLOCK}.attn.v_proj.weight", ("blocks/attn/v/kernel",), "dense"),
    Row(f"{_BLOCK}.attn.g_proj.weight", ("blocks/attn/g/kernel",), "dense"),
    Row(f"{_BLOCK}.attn.gk_proj.0.weight", ("blocks/attn/gk/down/kernel",), "dense"),
    *linear(f"{_BLOCK}.attn.gk_proj.1", "blocks/attn/gk/up"),
    Row(f"{_BLOCK}.attn.g_norm_swish_gate.weight", ("blocks/attn/g_norm/scale",), "as_is"),
    Row(f"{_BLOCK}.attn.o_proj.weight", ("blocks/attn/out/kernel",), "dense"),
    # One matrix, rows [gate | value].
    Row(f"{_BLOCK}.mlp.gate_proj.weight", ("blocks/mlp/gate/kernel",), "dense"),
    Row(f"{_BLOCK}.mlp.down_proj.weight", ("blocks/mlp/down/kernel",), "dense"),
    *linear(f"{_BLOCK}.adaLN_modulation.1", "blocks/adaln"),
    Row(f"{_BLOCK}.dw_conv.weight", ("blocks/dwc/kernel",), "depthwise"),
    Row(f"{_BLOCK}.dw_conv.bias", ("blocks/dwc/bias",), "as_is"),
    *linear(f"{_BLOCK}.skip_linear", "skip", blocks=_second_half),
    *linear("final_layer.adaLN_modulation.1", "final_layer/adaln"),
    *linear("final_layer.linear", "final_layer/linear"),
)

LAYOUTS = (
    Layout(
        name="dig",
        config=DiGConfig,
        holds=lambda config: True,
        rows=_ROWS,
        marks=("blocks.0.attn.gk_proj.0.weight",),
        droppable=POS_EMBED,
    ),
)
