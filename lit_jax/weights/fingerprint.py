"""The identity of a set of parameters: what a reported number was made from."""

from __future__ import annotations

import hashlib

import jax
import numpy as np

from lit_jax.models.zoo import Params
from lit_jax.sharding import path_string


def params_sha256(params: Params) -> str:
    """sha256 (hex) over paths, dtypes, shapes and bytes of all leaves, in the order of the paths.

    The same for a model folder and for the workdir it was written from.
    """
    digest = hashlib.sha256()
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in sorted(leaves.items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
