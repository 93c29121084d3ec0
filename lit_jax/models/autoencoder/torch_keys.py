"""AutoencoderKL: the layout of diffusers, and its spelling before 2023."""

from __future__ import annotations

from lit_jax.keymap.rows import Layout, Row, conv, linear, norm
from lit_jax.models.autoencoder.config import AutoencoderConfig


def _resnet(source: str, target: str) -> tuple[Row, ...]:
    return (
        *norm(f"{source}.norm1", f"{target}/norm1"),
        *conv(f"{source}.conv1", f"{target}/conv1"),
        *norm(f"{source}.norm2", f"{target}/norm2"),
        *conv(f"{source}.conv2", f"{target}/conv2"),
        *conv(f"{source}.conv_shortcut", f"{target}/shortcut"),
    )


def _half(half: str, blocks: str, change: str) -> tuple[Row, ...]:
    """Return encoder or decoder, without the projections of its attention. `blocks` and `change`
    are what diffusers calls the levels and the change of resolution at their end."""
    ours = blocks.split("_")[0]
    return (
        *conv(f"{half}.conv_in", f"{half}/conv_in"),
        *_resnet(f"{half}.{blocks}.{{i}}.resnets.{{j}}", f"{half}/{ours}/{{i}}/resnets/{{j}}"),
        *conv(f"{half}.{blocks}.{{i}}.{change}rs.0.conv", f"{half}/{ours}/{{i}}/{change}"),
        *_resnet(f"{half}.mid_block.resnets.{{j}}", f"{half}/mid/resnets/{{j}}"),
        *norm(f"{half}.mid_block.attentions.0.group_norm", f"{half}/mid/attn/norm"),
        *norm(f"{half}.conv_norm_out", f"{half}/norm_out"),
        *conv(f"{half}.conv_out", f"{half}/conv_out"),
    )


def _projections(*names: str) -> tuple[Row, ...]:
    """Return q, k, v and out of both middle blocks; always [C, C], also under the old names."""
    return tuple(
        row
        for half in ("encoder", "decoder")
        for source, target in zip(names, ("q", "k", "v", "out"), strict=True)
        for row in linear(f"{half}.mid_block.attentions.0.{source}", f"{half}/mid/attn/{target}")
    )


_CONVOLUTIONS = (
    *_half("encoder", "down_blocks", "downsample"),
    *_half("decoder", "up_blocks", "upsample"),
    *conv("quant_conv", "quant_conv"),
    *conv("post_quant_conv", "post_quant_conv"),
)

LAYOUTS = (
    Layout(
        name="diffusers",
        config=AutoencoderConfig,
        holds=lambda config: True,
        rows=(*_CONVOLUTIONS, *_projections("to_q", "to_k", "to_v", "to_out.0")),
        marks=("encoder.mid_block.attentions.0.to_q.weight",),
    ),
    # As in the files of the fine-tuned decoders of Stable Diffusion 1.x.
    Layout(
        name="diffusers-old",
        config=AutoencoderConfig,
        holds=lambda config: True,
        rows=(*_CONVOLUTIONS, *_projections("query", "key", "value", "proj_attn")),
        marks=("encoder.mid_block.attentions.0.query.weight",),
    ),
)
