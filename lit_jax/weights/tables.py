"""Key tables between PyTorch checkpoints and the parameter tree of this package. numpy only.

One row serves both directions: import reads it from left to right, export from right to left, so
that an exported file always imports again. D hidden size, C input channels, p patch size,
d head width, k kernel size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """How one torch tensor becomes one parameter (of one block), and back.

    `source_shape` gives the torch shape that belongs to a parameter shape; `p` is the patch size.
    """

    to_param: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray, Shape], np.ndarray]
    source_shape: Callable[[Shape, int], Shape]


def _patch_to_param(weight: np.ndarray) -> np.ndarray:
    """Convolution weight [D, C, p, p] -> kernel [p*p*C, D], rows ordered row, column, channel."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _patch_to_torch(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    D, C, p, _ = shape
    return kernel.reshape(p, p, C, D).transpose(3, 2, 0, 1)


TRANSFORMS = {
    "as_is": Transform(
        to_param=lambda a: a,
        to_torch=lambda a, shape: a,
        source_shape=lambda shape, p: shape,
    ),
    # torch keeps [out, in], a kernel is [in, out].
    "dense": Transform(
        to_param=lambda a: a.T,
        to_torch=lambda a, shape: a.T,
        source_shape=lambda shape, p: shape[::-1],
    ),
    "patch": Transform(
        to_param=_patch_to_param,
        to_torch=_patch_to_torch,
        source_shape=lambda shape, p: (shape[1], shape[0] // (p * p), p, p),
    ),
    # Depth-wise convolution: [d, 1, k, k] <-> [k, k, d].
    "depthwise": Transform(
        to_param=lambda a: a[:, 0].transpose(1, 2, 0),
        to_torch=lambda a, shape: a.transpose(2, 0, 1)[:, None],
        source_shape=lambda shape, p: (shape[2], 1, shape[0], shape[1]),
    ),
}


@dataclass(frozen=True)
class Row:
    """One torch key <-> one or more parameters.

    `source` may contain `{i}`, the number of a block; its targets are then stacked on axis 0.
    Several targets are equal parts of the torch tensor along its first axis, in this order.
    """

    source: str
    targets: tuple[str, ...]
    transform: str

    @property
    def stacked(self) -> bool:
        return "{i}" in self.source


def _linear(source: str, *targets: str) -> tuple[Row, Row]:
    """Weight and bias of one torch Linear."""
    return (
        Row(f"{source}.weight", tuple(f"{t}/kernel" for t in targets), "dense"),
        Row(f"{source}.bias", tuple(f"{t}/bias" for t in targets), "as_is"),
    )


# Everything outside self-attention, facebookresearch/DiT models.py.
_BACKBONE = (
    Row("x_embedder.proj.weight", ("x_embedder/kernel",), "patch"),
    Row("x_embedder.proj.bias", ("x_embedder/bias",), "as_is"),
    *_linear("t_embedder.mlp.0", "t_embedder/fc1"),
    *_linear("t_embedder.mlp.2", "t_embedder/fc2"),
    Row("y_embedder.embedding_table.weight", ("y_embedder/embedding",), "as_is"),
    *_linear("blocks.{i}.attn.proj", "blocks/attn/out"),
    *_linear("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
    *_linear("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
    *_linear("blocks.{i}.adaLN_modulation.1", "blocks/adaln"),
    *_linear("final_layer.adaLN_modulation.1", "final_layer/adaln"),
    *_linear("final_layer.linear", "final_layer/linear"),
)

LAYOUTS: dict[str, tuple[Row, ...]] = {
    # Official DiT: one fused projection, rows [q | k | v], each head-major.
    "dit": (
        *_BACKBONE,
        *_linear("blocks.{i}.attn.qkv", "blocks/attn/q", "blocks/attn/k", "blocks/attn/v"),
    ),
    # LiT, Algorithm 1: separate q, fused [k | v], depth-wise convolution of d filters. `scale` and
    # `positional_encoding` belong to the focused variant.
    "lit": (
        *_BACKBONE,
        *_linear("blocks.{i}.attn.q", "blocks/attn/q"),
        *_linear("blocks.{i}.attn.kv", "blocks/attn/k", "blocks/attn/v"),
        Row("blocks.{i}.attn.dwc.weight", ("blocks/attn/dwc/kernel",), "depthwise"),
        Row("blocks.{i}.attn.dwc.bias", ("blocks/attn/dwc/bias",), "as_is"),
        Row("blocks.{i}.attn.scale", ("blocks/attn/scale",), "as_is"),
        Row("blocks.{i}.attn.positional_encoding", ("blocks/attn/position",), "as_is"),
    ),
}

# Which layouts can hold which mixer.
MIXER_LAYOUTS = {"softmax": "dit", "linear": "lit", "focused": "lit"}

# Keys that hold no parameter, and why nothing is lost by dropping them.
DROPPABLE = {"pos_embed": "analytic position table, recomputed from the token grid"}


def layout_of(keys: Collection[str]) -> str:
    """The layout of a state dict: the row of LAYOUTS whose self-attention projection it has.

    Raises ValueError naming the projections looked for, when there is none or more than one.
    """
    marks = {"dit": "blocks.0.attn.qkv.weight", "lit": "blocks.0.attn.kv.weight"}
    found = [layout for layout, key in marks.items() if key in keys]
    if len(found) == 1:
        return found[0]
    wanted = ", ".join(f"{key!r} (layout {layout})" for layout, key in marks.items())
    sample = ", ".join(sorted(keys)[:4])
    raise ValueError(
        f"not a DiT or LiT checkpoint: exactly one of {wanted} must be among its {len(keys)} keys,"
        f" which start with {sample or 'nothing'}"
    )
