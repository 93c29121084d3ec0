"""Parts of a key table: rows, transforms and layouts. numpy only.

One row serves both directions: import reads it from left to right, export from right to left, so
that an exported file always imports again. D hidden size, C input channels, p patch size,
d head width, k kernel size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]

BLOCK = "{block}"
"""The placeholder of a row's source that counts blocks; their parameters are stacked on axis 0."""


@dataclass(frozen=True)
class Transform:
    """Conversion of one torch tensor to one parameter (of one block), and back.

    `source_shape` gives the torch shape that belongs to a parameter shape and a configuration.
    """

    to_param: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray, Shape], np.ndarray]
    source_shape: Callable[[Shape, Any], Shape]


def _patch_to_param(weight: np.ndarray) -> np.ndarray:
    """Return convolution weight [D, C, p, p] -> kernel [p*p*C, D], rows ordered row, column,
    channel."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _patch_to_torch(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    D, C, p, _ = shape
    return kernel.reshape(p, p, C, D).transpose(3, 2, 0, 1)


def _patch_shape(shape: Shape, config: Any) -> Shape:
    p = config.patch_size
    return (shape[1], shape[0] // (p * p), p, p)


TRANSFORMS = {
    "as_is": Transform(
        to_param=lambda a: a,
        to_torch=lambda a, shape: a,
        source_shape=lambda shape, config: shape,
    ),
    # torch keeps [out, in], a kernel is [in, out].
    "dense": Transform(
        to_param=lambda a: a.T,
        to_torch=lambda a, shape: a.T,
        source_shape=lambda shape, config: shape[::-1],
    ),
    "patch": Transform(
        to_param=_patch_to_param,
        to_torch=_patch_to_torch,
        source_shape=_patch_shape,
    ),
    # Convolution: [out, in, kh, kw] <-> [kh, kw, in, out].
    "conv": Transform(
        to_param=lambda a: a.transpose(2, 3, 1, 0),
        to_torch=lambda a, shape: a.transpose(3, 2, 0, 1),
        source_shape=lambda shape, config: (shape[3], shape[2], shape[0], shape[1]),
    ),
    # Depth-wise convolution: [d, 1, k, k] <-> [k, k, d].
    "depthwise": Transform(
        to_param=lambda a: a[:, 0].transpose(1, 2, 0),
        to_torch=lambda a, shape: a.transpose(2, 0, 1)[:, None],
        source_shape=lambda shape, config: (shape[2], 1, shape[0], shape[1]),
    ),
    # CLEAR's weights of pooled tokens, one for batch, heads and channels, between the axes of the
    # patches: [1, 1, 1, f, 1, f, 1] <-> [f, f].
    "pool": Transform(
        to_param=lambda a: a.reshape(a.shape[3], a.shape[5]),
        to_torch=lambda a, shape: a.reshape(shape),
        source_shape=lambda shape, config: (1, 1, 1, shape[0], 1, shape[1], 1),
    ),
}


@dataclass(frozen=True)
class Row:
    """One torch key <-> one or more parameters.

    `source` and `targets` are templates; a placeholder such as `{i}` stands for a number and means
    the same on both sides. `{block}` stands in the source alone: the blocks' tensors are stacked on
    axis 0 of the parameter, in the order of `blocks(config)` (default: 0, 1, ...). With `repeated`
    every block holds a copy of one parameter instead; on import the copies must be equal.
    Several targets are equal parts of the torch tensor along its first axis, in this order.
    `copies` are further keys that may hold the same tensor; on import they must be equal, and one
    of them may stand in for a missing source; export does not write them.
    """

    source: str
    targets: tuple[str, ...]
    transform: str
    repeated: bool = False
    blocks: Callable[[Any], Sequence[int]] | None = None
    copies: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        return BLOCK in self.source and not self.repeated


def linear(source: str, *targets: str, **options: Any) -> tuple[Row, Row]:
    """Return weight and bias of one torch Linear."""
    return (
        Row(f"{source}.weight", tuple(f"{t}/kernel" for t in targets), "dense", **options),
        Row(f"{source}.bias", tuple(f"{t}/bias" for t in targets), "as_is", **options),
    )


def conv(source: str, target: str) -> tuple[Row, Row]:
    """Return weight and bias of one torch Conv2d."""
    return (
        Row(f"{source}.weight", (f"{target}/kernel",), "conv"),
        Row(f"{source}.bias", (f"{target}/bias",), "as_is"),
    )


def norm(source: str, target: str, **options: Any) -> tuple[Row, Row]:
    """Return weight and bias of one torch LayerNorm or GroupNorm."""
    return (
        Row(f"{source}.weight", (f"{target}/scale",), "as_is", **options),
        Row(f"{source}.bias", (f"{target}/bias",), "as_is", **options),
    )


@dataclass(frozen=True)
class Layout:
    """One way in which PyTorch users hold a family of models.

    name       what `--layout` and the provenance call it
    config     the configuration class of its models
    holds      which of those configurations it can hold; others have another layout
    rows       the key table; a row without parameters in a given model is left out
    marks      keys by which it is recognised, all of them present ...
    lacks      ... and none of these
    droppable  regular expressions of keys that hold no parameter -> why nothing is lost
    omits      parameters that an exported file of this layout does not hold
    """

    name: str
    config: type[Any]
    holds: Callable[[Any], bool]
    rows: tuple[Row, ...]
    marks: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    droppable: Mapping[str, str] = field(default_factory=dict)
    omits: tuple[str, ...] = ()

    def recognises(self, keys: Collection[str]) -> bool:
        return all(k in keys for k in self.marks) and not any(k in keys for k in self.lacks)

    def reason_to_drop(self, key: str) -> str | None:
        """Return why `key` is not needed, None if it is not on the list."""
        for pattern, reason in self.droppable.items():
            if re.fullmatch(pattern, key):
                return reason
        return None

    def source_of(self, target: str, **numbers: int) -> str | None:
        """Return the torch key of a parameter, `{block}` being 0 unless `numbers` says
        otherwise."""
        for row in self.rows:
            if target in row.targets:
                return row.source.format(**({"block": 0} | numbers))
        return None
