"""The Inception of the FID: the file of pytorch-fid, in torchvision's naming."""

from __future__ import annotations

import itertools

from lit_jax.keymap.rows import Layout, Row, linear
from lit_jax.models.inception.config import InceptionConfig

_35x35 = ("1x1", "5x5_1", "5x5_2", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3", "_pool")
_17x17 = ("1x1", *(f"7x7_{n}" for n in range(1, 4)), *(f"7x7dbl_{n}" for n in range(1, 6)), "_pool")
_8x8 = (
    "1x1",
    "3x3_1",
    "3x3_2a",
    "3x3_2b",
    "3x3dbl_1",
    "3x3dbl_2",
    "3x3dbl_3a",
    "3x3dbl_3b",
    "_pool",
)

_BRANCHES = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _35x35),
    "Mixed_6a": ("3x3", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _17x17),
    "Mixed_7a": ("3x3_1", "3x3_2", "7x7x3_1", "7x7x3_2", "7x7x3_3", "7x7x3_4"),
    **dict.fromkeys(("Mixed_7b", "Mixed_7c"), _8x8),
}

_STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")


def _conv_and_norm(source: str, target: str) -> tuple[Row, ...]:
    """Return one convolution without bias and its batch norm with stored statistics."""
    return (
        Row(f"{source}.conv.weight", (f"{target}/conv/kernel",), "conv"),
        Row(f"{source}.bn.weight", (f"{target}/bn/scale",), "as_is"),
        Row(f"{source}.bn.bias", (f"{target}/bn/bias",), "as_is"),
        Row(f"{source}.bn.running_mean", (f"{target}/bn/mean",), "as_is"),
        Row(f"{source}.bn.running_var", (f"{target}/bn/var",), "as_is"),
    )


def _rows() -> tuple[Row, ...]:
    names = [(block, f"branch{name}") for block, branch in _BRANCHES.items() for name in branch]
    convolutions = [
        *(_conv_and_norm(f"Conv2d_{name}", f"Conv2d_{name}") for name in _STEM),
        *(_conv_and_norm(".".join(name), "/".join(name)) for name in names),
    ]
    return (*itertools.chain(*convolutions), *linear("fc", "fc"))


LAYOUTS = (
    Layout(
        name="pytorch-fid",
        config=InceptionConfig,
        holds=lambda config: True,
        rows=_rows(),
        marks=("Conv2d_1a_3x3.conv.weight",),
        droppable={
            r".*\.num_batches_tracked": "counter of training steps, without influence",
            r"AuxLogits\..*": "auxiliary classifier, which takes part in training alone",
        },
    ),
)
