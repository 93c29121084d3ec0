"""Key tables of PixArt-alpha, PixArt-Sigma and the text-to-image LiT.

Sources: the official checkpoints (PixArt-alpha/PixArt-sigma, diffusion/model/nets), the same with
the self-attention of LiT, and the transformer folder of diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_jax.keymap.rows import Layout, Row, linear, norm
from lit_jax.models.attention import is_softmax
from lit_jax.models.dit.torch_keys import ALGORITHM_1, FUSED_SOFTMAX, POOLED, POS_EMBED
from lit_jax.models.pixart.config import PixArtConfig

# Everything outside self-attention.
_BACKBONE = (
    Row("x_embedder.proj.weight", ("x_embedder/kernel",), "patch"),
    Row("x_embedder.proj.bias", ("x_embedder/bias",), "as_is"),
    *linear("t_embedder.mlp.0", "t_embedder/fc1"),
    *linear("t_embedder.mlp.2", "t_embedder/fc2"),
    *linear("t_block.1", "t_block"),
    *linear("y_embedder.y_proj.fc1", "y_embedder/fc1"),
    *linear("y_embedder.y_proj.fc2", "y_embedder/fc2"),
    Row("y_embedder.y_embedding", ("y_embedder/null_caption",), "as_is"),
    *linear("csize_embedder.mlp.0", "csize_embedder/fc1"),
    *linear("csize_embedder.mlp.2", "csize_embedder/fc2"),
    *linear("ar_embedder.mlp.0", "ar_embedder/fc1"),
    *linear("ar_embedder.mlp.2", "ar_embedder/fc2"),
    Row("blocks.{block}.scale_shift_table", ("blocks/scale_shift_table",), "as_is"),
    *linear("blocks.{block}.attn.proj", "blocks/attn/out"),
    *linear("blocks.{block}.cross_attn.q_linear", "blocks/cross_attn/q"),
    *linear("blocks.{block}.cross_attn.kv_linear", "blocks/cross_attn/k", "blocks/cross_attn/v"),
    *linear("blocks.{block}.cross_attn.proj", "blocks/cross_attn/out"),
    *linear("blocks.{block}.mlp.fc1", "blocks/mlp/fc1"),
    *linear("blocks.{block}.mlp.fc2", "blocks/mlp/fc2"),
    Row("final_layer.scale_shift_table", ("final_layer/scale_shift_table",), "as_is"),
    *linear("final_layer.linear", "final_layer/linear"),
)


def _compressed(config: PixArtConfig) -> Sequence[int]:
    return config.compressed_layers


_SOFTMAX_OPTIONS = (
    *norm("blocks.{block}.attn.q_norm", "blocks/attn/q_norm"),
    *norm("blocks.{block}.attn.k_norm", "blocks/attn/k_norm"),
    Row(
        "blocks.{block}.attn.sr.weight",
        ("kv_compress/conv/kernel",),
        "depthwise",
        blocks=_compressed,
    ),
    Row("blocks.{block}.attn.sr.bias", ("kv_compress/conv/bias",), "as_is", blocks=_compressed),
    *norm("blocks.{block}.attn.norm", "kv_compress/norm", blocks=_compressed),
)

# The official module builds these tensors for sampling "conv" alone and ignores stored ones with
# the others. A model with sampling "conv" takes them in, and detection reads from them which layers
# are compressed, so that none of them is dropped unless another sampling is asked for.
_KV_FILTERS = {
    r"blocks\.\d+\.attn\.(sr|norm)\.(weight|bias)": "filter of key/value compression by"
    " convolution, which the sampling of this model does not use",
}

_BLOCK = "transformer_blocks.{block}"
_TIME = "adaln_single.emb"

# diffusers' PixArtTransformer2DModel; Transformer2DModel of older files has the same keys.
_DIFFUSERS = (
    Row("pos_embed.proj.weight", ("x_embedder/kernel",), "patch"),
    Row("pos_embed.proj.bias", ("x_embedder/bias",), "as_is"),
    *linear(f"{_TIME}.timestep_embedder.linear_1", "t_embedder/fc1"),
    *linear(f"{_TIME}.timestep_embedder.linear_2", "t_embedder/fc2"),
    *linear(f"{_TIME}.resolution_embedder.linear_1", "csize_embedder/fc1"),
    *linear(f"{_TIME}.resolution_embedder.linear_2", "csize_embedder/fc2"),
    *linear(f"{_TIME}.aspect_ratio_embedder.linear_1", "ar_embedder/fc1"),
    *linear(f"{_TIME}.aspect_ratio_embedder.linear_2", "ar_embedder/fc2"),
    *linear("adaln_single.linear", "t_block"),
    *linear("caption_projection.linear_1", "y_embedder/fc1"),
    *linear("caption_projection.linear_2", "y_embedder/fc2"),
    # Only early files have it. The present class of diffusers has no place for it, so that it is
    # read but never written (`omits` below).
    Row("caption_projection.y_embedding", ("y_embedder/null_caption",), "as_is"),
    Row(f"{_BLOCK}.scale_shift_table", ("blocks/scale_shift_table",), "as_is"),
    *linear(f"{_BLOCK}.attn1.to_q", "blocks/attn/q"),
    *linear(f"{_BLOCK}.attn1.to_k", "blocks/attn/k"),
    *linear(f"{_BLOCK}.attn1.to_v", "blocks/attn/v"),
    *linear(f"{_BLOCK}.attn1.to_out.0", "blocks/attn/out"),
    *linear(f"{_BLOCK}.attn2.to_q", "blocks/cross_attn/q"),
    *linear(f"{_BLOCK}.attn2.to_k", "blocks/cross_attn/k"),
    *linear(f"{_BLOCK}.attn2.to_v", "blocks/cross_attn/v"),
    *linear(f"{_BLOCK}.attn2.to_out.0", "blocks/cross_attn/out"),
    *linear(f"{_BLOCK}.ff.net.0.proj", "blocks/mlp/fc1"),
    *linear(f"{_BLOCK}.ff.net.2", "blocks/mlp/fc2"),
    Row("scale_shift_table", ("final_layer/scale_shift_table",), "as_is"),
    *linear("proj_out", "final_layer/linear"),
)


def _diffusers_holds(config: PixArtConfig) -> bool:
    """Return square nominal size, one head count, MLP of ratio 4, biases everywhere, plain
    softmax."""
    plain = config.mixer == "softmax" and not config.qk_norm and not config.compressed_layers
    fixed = config.qkv_bias and config.cross_heads == config.num_heads
    height, width = config.image_size
    return plain and fixed and height == width and config.mlp_width == 4 * config.hidden_size


LAYOUTS = (
    Layout(
        name="pixart",
        config=PixArtConfig,
        holds=lambda config: is_softmax(config.mixer),
        rows=(*_BACKBONE, *FUSED_SOFTMAX, *POOLED, *_SOFTMAX_OPTIONS),
        marks=("t_block.1.weight", "blocks.0.attn.qkv.weight"),
        droppable=POS_EMBED | _KV_FILTERS,
    ),
    Layout(
        name="lit",
        config=PixArtConfig,
        holds=lambda config: config.mixer == "linear",
        rows=(*_BACKBONE, *ALGORITHM_1),
        marks=("t_block.1.weight", "blocks.0.attn.kv.weight"),
        droppable=POS_EMBED,
    ),
    Layout(
        name="diffusers",
        config=PixArtConfig,
        holds=_diffusers_holds,
        rows=_DIFFUSERS,
        marks=("adaln_single.linear.weight", "pos_embed.proj.weight"),
        droppable={
            r"caption_projection\.y_embedding": "null caption of an early file, which this model"
            " is asked not to hold (model_max_length=None)",
        },
        omits=("y_embedder/null_caption",),
    ),
)
