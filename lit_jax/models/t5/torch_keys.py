"""T5 v1.1 and Flan-T5: the naming of transformers, of the encoder alone or of a whole T5."""

from __future__ import annotations

from lit_jax.keymap.rows import Layout, Row
from lit_jax.models.t5.config import T5Config

_ATTENTION = "encoder.block.{block}.layer.0"
_MLP = "encoder.block.{block}.layer.1"


def _dense(source: str, target: str) -> Row:
    """Return one torch Linear without bias."""
    return Row(f"{source}.weight", (f"{target}/kernel",), "dense")


def _scale(source: str, target: str) -> Row:
    """Return one norm without bias."""
    return Row(f"{source}.weight", (f"{target}/scale",), "as_is")


_ROWS = (
    # The table is shared with the decoder; older files store it a second time for the encoder.
    Row(
        "shared.weight",
        ("shared/embedding",),
        "as_is",
        copies=("encoder.embed_tokens.weight",),
    ),
    # Only the first block holds the table that all of them use.
    Row(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ("relative_bias/embedding",),
        "as_is",
    ),
    *(
        _dense(f"{_ATTENTION}.SelfAttention.{key}", f"blocks/attn/{name}")
        for key, name in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
    ),
    _scale(f"{_ATTENTION}.layer_norm", "blocks/attn_norm"),
    *(
        _dense(f"{_MLP}.DenseReluDense.{name}", f"blocks/mlp/{name}")
        for name in ("wi_0", "wi_1", "wo")
    ),
    _scale(f"{_MLP}.layer_norm", "blocks/mlp_norm"),
    _scale("encoder.final_layer_norm", "final_norm"),
)

LAYOUTS = (
    Layout(
        name="transformers",
        config=T5Config,
        holds=lambda config: config.weights == "float",
        rows=_ROWS,
        marks=("encoder.block.0.layer.0.SelfAttention.q.weight",),
        droppable={
            r"decoder\..*": "decoder of a whole T5; text conditioning uses the encoder alone",
            r"lm_head\.weight": "output layer of the decoder; text conditioning has no use of it",
        },
    ),
)
