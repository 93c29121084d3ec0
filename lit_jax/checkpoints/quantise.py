"""A T5 with int8 matrices from a model folder of a T5 with float ones, leaf by leaf."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lit_jax.checkpoints.identity import FLOAT_SHA256
from lit_jax.checkpoints.model_folder import ModelFolder
from lit_jax.checkpoints.pairing import abstract_leaves
from lit_jax.checkpoints.stored import PARAMS
from lit_jax.checkpoints.streaming import UnreadLeaf, write_unread
from lit_jax.checkpoints.weight_files import cannot_write
from lit_jax.checkpoints.writing import staged_model_dir, write_config
from lit_jax.models.t5.config import TOKENIZER_FILE, T5Config
from lit_jax.models.t5.int8 import dequantise, quantise

Progress = Callable[[int], None]
"""Called with the numbers that were read since the last call."""

# Last part of a path -> the axis along which groups of numbers share a scale: the inputs of a
# kernel [in, out], the width of a table [rows, width].
SHARED_AXIS = {"kernel": 0, "embedding": 1}
SCALE = "scale"


@dataclass
class Matrix:
    """A float leaf [n, m] or a stack of them [layers, n, m], and its int8 form when it is read.

    `error` is the root mean square of the rounding, relative to that of the numbers; the largest of
    the stack.
    """

    leaf: UnreadLeaf
    axis: int
    progress: Progress
    error: float = 0.0
    _scale: np.ndarray | None = field(default=None, repr=False)

    def integers(self) -> np.ndarray:
        return self._quantised()[0]

    def scale(self) -> np.ndarray:
        # The writer asks for both, one after the other; the numbers are read once in that case.
        return self._quantised()[1] if self._scale is None else self._scale

    def _quantised(self) -> tuple[np.ndarray, np.ndarray]:
        weights = self.leaf.read()
        stack = weights if weights.ndim == 3 else weights[None]
        integers = np.empty(stack.shape, np.int8)
        scales = []
        for n, matrix in enumerate(stack):
            integers[n], scale, error = _rounded(matrix, self.axis)
            scales.append(np.asarray(scale))
            self.error = max(self.error, float(error))
            self.progress(matrix.size)
        self._scale = np.stack(scales) if weights.ndim == 3 else scales[0]
        return integers.reshape(weights.shape), self._scale


@functools.partial(jax.jit, static_argnums=1)
def _rounded(matrix: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    integers, scale = quantise(matrix, axis)
    rest = dequantise(integers, scale, axis) - matrix
    largest = jax.numpy.maximum(jax.numpy.sum(matrix**2), np.finfo(np.float32).tiny)
    return integers, scale, jax.numpy.sqrt(jax.numpy.sum(rest**2) / largest)


def float_folder(model_dir: str | Path) -> ModelFolder:
    """Open the model folder of a T5 with float weights; ValueError for any other network."""
    folder = ModelFolder(model_dir, expect="T5")
    weights = folder.config.weights  # type: ignore[union-attr]
    if weights != "float":
        raise ValueError(
            f"{model_dir} holds {weights} weights already; name the folder with the float weights"
            " they were made from"
        )
    return folder


def quantise_t5(
    src: str | Path, dst: str | Path, overwrite: bool = False, progress: Progress = lambda n: None
) -> dict[str, float]:
    """Write `dst`, the model folder of the T5 in `src` with int8 matrices; `dst` appears whole or
    not at all. Returns the relative error of the rounding per matrix (path -> largest of a stack).

    One leaf is in memory at a time. The tokenizer is copied, the provenance kept; its
    FLOAT_SHA256 says which float weights these were. Raises ValueError for a source that is no T5
    with float weights, when the disk does not take it, and as `staged_model_dir` does.
    """
    folder = float_folder(src)
    stored: Any = folder.config
    config = dataclasses.replace(stored, weights="int8")
    matrices, leaves = int8_leaves(folder, config, progress)
    tokenizer = Path(src) / TOKENIZER_FILE
    with staged_model_dir(dst, overwrite) as staged:
        provenance = {**folder.provenance, "dtype": "int8", FLOAT_SHA256: folder.float_sha256}
        try:
            write_unread(staged / PARAMS, leaves)
        except RuntimeError as error:
            raise cannot_write(dst, error) from error
        write_config(staged, config, provenance)
        if tokenizer.is_file():
            (staged / TOKENIZER_FILE).parent.mkdir()
            shutil.copyfile(tokenizer, staged / TOKENIZER_FILE)
    return {path: matrix.error for path, matrix in matrices.items()}


def int8_leaves(
    src: ModelFolder, config: T5Config, progress: Progress
) -> tuple[dict[str, Matrix], dict[str, UnreadLeaf]]:
    """Return the matrices of a T5 with float weights, and the leaves of `config`, its int8 form."""
    stored = src.leaves()
    wanted = abstract_leaves(config)
    matrices = {
        path: Matrix(stored[path], SHARED_AXIS[path.split("/")[-1]], progress)
        for path, leaf in wanted.items()
        if leaf.dtype == np.int8
    }
    leaves: dict[str, UnreadLeaf] = {}
    for path, leaf in wanted.items():
        folder, _, last = path.rpartition("/")
        if path in matrices:
            read = matrices[path].integers
        elif path in stored:
            read = stored[path].read
        else:
            assert last == SCALE
            (matrix,) = (m for name, m in matrices.items() if name.rpartition("/")[0] == folder)
            read = matrix.scale
        leaves[path] = UnreadLeaf(tuple(leaf.shape), leaf.dtype, read)
    return matrices, leaves
