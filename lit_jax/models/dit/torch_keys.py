"""DiT, LiT and CLEAR on class labels: the official layouts and that of diffusers."""

from __future__ import annotations

from lit_jax.keymap.rows import Layout, Row, linear
from lit_jax.models.attention import is_softmax
from lit_jax.models.dit.config import DiTConfig

# Everything outside self-attention, facebookresearch/DiT models.py.
_BACKBONE = (
    Row("x_embedder.proj.weight", ("x_embedder/kernel",), "patch"),
    Row("x_embedder.proj.bias", ("x_embedder/bias",), "as_is"),
    *linear("t_embedder.mlp.0", "t_embedder/fc1"),
    *linear("t_embedder.mlp.2", "t_embedder/fc2"),
    Row("y_embedder.embedding_table.weight", ("y_embedder/embedding",), "as_is"),
    *linear("blocks.{block}.attn.proj", "blocks/attn/out"),
    *linear("blocks.{block}.mlp.fc1", "blocks/mlp/fc1"),
    *linear("blocks.{block}.mlp.fc2", "blocks/mlp/fc2"),
    *linear("blocks.{block}.adaLN_modulation.1", "blocks/adaln"),
    *linear("final_layer.adaLN_modulation.1", "final_layer/adaln"),
    *linear("final_layer.linear", "final_layer/linear"),
)

# One fused projection, rows [q | k | v], each head-major.
FUSED_SOFTMAX = linear("blocks.{block}.attn.qkv", "blocks/attn/q", "blocks/attn/k", "blocks/attn/v")

# CLEAR: softmax attention, and with pooled tokens their weights (Huage001/CLEAR).
POOLED = (Row("blocks.{block}.attn.spatial_weight", ("blocks/attn/pool/kernel",), "pool"),)

# LiT, Algorithm 1: separate q, fused [k | v], depth-wise convolution of d filters. `scale` and
# `positional_encoding` belong to the focused variant.
ALGORITHM_1 = (
    *linear("blocks.{block}.attn.q", "blocks/attn/q"),
    *linear("blocks.{block}.attn.kv", "blocks/attn/k", "blocks/attn/v"),
    Row("blocks.{block}.attn.dwc.weight", ("blocks/attn/dwc/kernel",), "depthwise"),
    Row("blocks.{block}.attn.dwc.bias", ("blocks/attn/dwc/bias",), "as_is"),
    Row("blocks.{block}.attn.scale", ("blocks/attn/scale",), "as_is"),
    Row("blocks.{block}.attn.positional_encoding", ("blocks/attn/position",), "as_is"),
)

POS_EMBED = {"pos_embed": "analytic position table, recomputed from the token grid"}

_NORM1 = "transformer_blocks.{block}.norm1"

# diffusers' DiTTransformer2DModel keeps a copy of both embedders in every block.
_DIFFUSERS = (
    Row("pos_embed.proj.weight", ("x_embedder/kernel",), "patch"),
    Row("pos_embed.proj.bias", ("x_embedder/bias",), "as_is"),
    *linear(f"{_NORM1}.emb.timestep_embedder.linear_1", "t_embedder/fc1", repeated=True),
    *linear(f"{_NORM1}.emb.timestep_embedder.linear_2", "t_embedder/fc2", repeated=True),
    Row(
        f"{_NORM1}.emb.class_embedder.embedding_table.weight",
        ("y_embedder/embedding",),
        "as_is",
        repeated=True,
    ),
    *linear("transformer_blocks.{block}.attn1.to_q", "blocks/attn/q"),
    *linear("transformer_blocks.{block}.attn1.to_k", "blocks/attn/k"),
    *linear("transformer_blocks.{block}.attn1.to_v", "blocks/attn/v"),
    *linear("transformer_blocks.{block}.attn1.to_out.0", "blocks/attn/out"),
    *linear("transformer_blocks.{block}.ff.net.0.proj", "blocks/mlp/fc1"),
    *linear("transformer_blocks.{block}.ff.net.2", "blocks/mlp/fc2"),
    *linear(f"{_NORM1}.linear", "blocks/adaln"),
    *linear("proj_out_1", "final_layer/adaln"),
    *linear("proj_out_2", "final_layer/linear"),
)


def _diffusers_holds(config: DiTConfig) -> bool:
    """Return its class has the null row, a square input and an MLP four times as wide as the
    model."""
    height, width = config.image_size
    return (
        config.mixer == "softmax"
        and config.qkv_bias
        and config.null_label is not None
        and height == width
        and config.mlp_width == 4 * config.hidden_size
    )


LAYOUTS = (
    Layout(
        name="dit",
        config=DiTConfig,
        holds=lambda config: is_softmax(config.mixer),
        rows=(*_BACKBONE, *FUSED_SOFTMAX, *POOLED),
        marks=("blocks.0.attn.qkv.weight",),
        lacks=("t_block.1.weight",),
        droppable=POS_EMBED,
    ),
    Layout(
        name="lit",
        config=DiTConfig,
        holds=lambda config: config.mixer in ("linear", "focused"),
        rows=(*_BACKBONE, *ALGORITHM_1),
        marks=("blocks.0.attn.kv.weight",),
        lacks=("t_block.1.weight",),
        droppable=POS_EMBED,
    ),
    Layout(
        name="diffusers",
        config=DiTConfig,
        holds=_diffusers_holds,
        rows=_DIFFUSERS,
        marks=("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight",),
    ),
)
