"""CAME (Luo et al. 2023, arXiv 2307.02047): Adafactor with a confidence-guided step, PixArt's
optimiser.

Second moments of a matrix are kept as row and column means, the first moment whole: little more
than half the memory of AdamW. What is a row, and what is one matrix, belongs to the torch layout:
there q, k and v are one tensor, a convolution is factored over its kernel, and every block has its
own tensors. Here parameters are split, transposed and stacked over the depth. So the optimiser
works on views: `torch_tensors` reads the key tables of the checkpoints and says which parameters
form which torch tensor. L blocks, [...] the axes of a torch tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lit_jax.checkpoints.layouts import HUB_LAYOUTS, layouts_for
from lit_jax.keymap.rows import TRANSFORMS, Shape, Transform
from lit_jax.models.registry import NetworkConfig
from lit_jax.sharding import path_string

Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class TorchTensor:
    """Parameters that are one tensor in torch, or one tensor per block.

    paths: its parameters, in the order in which they follow each other on the first torch axis.
    stacked: whether the parameters have blocks on axis 0, each with a tensor of its own.
    transform, part_shape: how a parameter (of one block) becomes its part of the torch tensor, and
        the shape of that part. Transforms are written for numpy and use nothing that a jax array
        lacks.
    """

    name: str
    paths: tuple[str, ...]
    stacked: bool
    transform: Transform
    part_shape: Shape

    def join(self, leaves: Arrays) -> jax.Array:
        """Return the torch tensor [...], or [L, ...]."""

        def to_torch(leaf: Any) -> Any:
            return self.transform.to_torch(leaf, self.part_shape)

        parts = [self._each_block(to_torch)(leaves[path]) for path in self.paths]
        return jnp.concatenate(parts, self.stacked)

    def split(self, tensor: jax.Array) -> Arrays:
        """Return its parameters again, by path."""
        to_param: Any = self.transform.to_param
        parts = jnp.split(tensor, len(self.paths), self.stacked)
        each = self._each_block(to_param)
        return {path: each(part) for path, part in zip(self.paths, parts, strict=True)}

    def _each_block(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return jax.vmap(function) if self.stacked else function


TensorsOf = Callable[[Arrays], Sequence[TorchTensor]]


def each_its_own(leaves: Arrays) -> tuple[TorchTensor, ...]:
    """Return every parameter as it is."""
    as_is = TRANSFORMS["as_is"]
    return tuple(
        TorchTensor(path.replace("/", "."), (path,), False, as_is, leaf.shape)
        for path, leaf in leaves.items()
    )


def torch_tensors(config: NetworkConfig) -> TensorsOf:
    """Return the tensors of the official checkpoints of this network.

    Parameters that are absent (another variant of the network, or frozen ones) are left out.
    The function raises ValueError for a parameter that no row of the key table has.
    """
    layout = next(lay for lay in layouts_for(config) if lay.name not in HUB_LAYOUTS)

    def tensors(leaves: Arrays) -> tuple[TorchTensor, ...]:
        found = []
        for row in layout.rows:
            if not (paths := tuple(path for path in row.targets if path in leaves)):
                continue
            transform, shape = TRANSFORMS[row.transform], leaves[paths[0]].shape[row.stacked :]
            part_shape = transform.source_shape(shape, config)
            name = row.source.replace("{block}.", "")
            found.append(TorchTensor(name, paths, row.stacked, transform, part_shape))
        if missing := leaves.keys() - {path for tensor in found for path in tensor.paths}:
            raise ValueError(
                f"{min(missing)!r} is in no row of the layout {layout.name!r}, so CAME does not"
                " know its torch tensor; add a row to weights.tables"
            )
        return tuple(found)

    return tensors


class Factored(NamedTuple):
    """Means over the last axis (row) and over the one before (column) of the squared gradient of a
    torch tensor, and of the squared residual: how far the gradient is from its first moment."""

    row: jax.Array
    column: jax.Array
    residual_row: jax.Array
    residual_column: jax.Array


class CameState(NamedTuple):
    """`first` moments are a tree as the parameters. `second` moments go by name of the torch
    tensor, with blocks first: factored from two axes on, whole for vectors."""

    first: Any
    second: dict[str, Factored | jax.Array]


def came(
    learning_rate: float | Callable[[int | jax.Array], jax.Array | float],
    tensors_of: TensorsOf = each_its_own,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    eps: tuple[float, float] = (1e-30, 1e-16),
    clip_threshold: float = 1.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Return CAME with decoupled weight decay; the defaults are PixArt-Sigma's, without bias
    correction.

    learning_rate: number or schedule. tensors_of: which parameters form a torch tensor; for a
    network `torch_tensors(config)`. eps: added to squared gradients and to squared residuals.
    clip_threshold: largest root mean square of a tensor's normalised gradient.
    """
    return optax.chain(
        _scale_by_came(tensors_of, (b1, b2, b3), eps, clip_threshold),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_came(
    tensors_of: TensorsOf,
    decay: tuple[float, float, float],
    eps: tuple[float, float],
    clip_threshold: float,
) -> optax.GradientTransformation:
    b1, b2, b3 = decay

    def init(params: Any) -> CameState:
        leaves, second = _by_path(params), {}
        for tensor in tensors_of(leaves):
            shape = jax.eval_shape(tensor.join, leaves).shape
            row, column = jnp.zeros(shape[:-1]), jnp.zeros((*shape[:-2], shape[-1]))
            factored = len(shape) - tensor.stacked >= 2
            second[tensor.name] = (
                Factored(row, column, jnp.copy(row), jnp.copy(column))
                if factored
                else jnp.zeros(shape)
            )
        return CameState(jax.tree.map(jnp.zeros_like, params), second)

    def update(updates: Any, state: CameState, params: Any = None) -> tuple[Any, CameState]:
        gradients, old_first = _by_path(updates), _by_path(state.first)
        steps: Arrays = {}
        first: Arrays = {}
        second: dict[str, Factored | jax.Array] = {}
        for tensor in tensors_of(gradients):
            gradient, moments = tensor.join(gradients), state.second[tensor.name]
            square = jnp.square(gradient) + eps[0]
            if isinstance(moments, Factored):
                row, column = _mix_means(b2, moments.row, moments.column, square)
                gradient = gradient * _inverse_root(row, column)
            else:
                moments = _mix(b2, moments, square)
                gradient = gradient * jax.lax.rsqrt(moments)
            gradient = _clip(gradient, clip_threshold, int(tensor.stacked))
            step = m = _mix(b1, tensor.join(old_first), gradient)
            if isinstance(moments, Factored):
                residual = jnp.square(gradient - m) + eps[1]
                kept = moments.residual_row, moments.residual_column
                moments = Factored(row, column, *_mix_means(b3, *kept, residual))
                step = m * _inverse_root(moments.residual_row, moments.residual_column)
            first |= tensor.split(m)
            second[tensor.name] = moments
            steps |= tensor.split(step)
        return _as_tree(steps, updates), CameState(_as_tree(first, updates), second)

    return optax.GradientTransformation(init, update)


def _clip(gradient: jax.Array, threshold: float, first_axis: int) -> jax.Array:
    """Scale every tensor, from `first_axis` on, to a root mean square of at most `threshold`."""
    axes = tuple(range(first_axis, gradient.ndim))
    rms = jnp.sqrt(jnp.square(gradient).mean(axes, keepdims=True))
    return gradient / jnp.maximum(1.0, rms / threshold)


def _mix_means(
    decay: float, row: jax.Array, column: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _mix(decay, row, values.mean(-1)), _mix(decay, column, values.mean(-2))


def _mix(decay: float, old: jax.Array, new: jax.Array) -> jax.Array:
    return decay * old + (1.0 - decay) * new


def _inverse_root(row: jax.Array, column: jax.Array) -> jax.Array:
    """Return 1 / sqrt of the matrix [..., r, c] that row means [..., r] and column means [..., c]
    stand for: their product over the mean."""
    rows = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))
    return rows[..., :, None] * jax.lax.rsqrt(column)[..., None, :]


def _by_path(tree: Any) -> Arrays:
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _as_tree(leaves: Arrays, like: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_string(path)], like)
