"""The device mesh, and the placement of arrays on it.

A parameter gets its placement from its path, by the rules of its family. Optimiser moments and EMA
end in the same paths and follow the same rules.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lit_jax.config import MeshConfig

BATCH_AXES = ("data", "fsdp")
"""A batch is split over all devices of both axes."""

ROW_AXIS = "sequence"
"""Devices that share one image when samples are drawn: each has some of its rows."""

Rule = tuple[str, tuple[str | None, ...]]
"""Pattern of the end of a parameter's path, and the mesh axis of each of its axes. Families of
networks own their rules; a path may have a prefix, such as that of an optimiser moment."""

COMMON: tuple[Rule, ...] = (
    # Whole on every device: vectors, and the second moments of CAME (rows and columns of matrices).
    (r"bias|scale", ()),
    (r"second/[^/]+(/(residual_)?(row|column))?", ()),
)


def join_cluster() -> None:
    """Join the processes of a multi-host job when LIT_JAX_DISTRIBUTED=1 says there are some.

    jax finds them by itself on TPU pods, under SLURM and under Open MPI. Anywhere else, CPUs
    included, JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID tell. Raises ValueError when they do not.
    """
    if os.environ.get("LIT_JAX_DISTRIBUTED") != "1":
        return
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
        )
    except ValueError as error:
        raise ValueError(
            f"LIT_JAX_DISTRIBUTED=1, but there is no cluster to join: {error} Set"
            " JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or unset it"
        ) from error


def make_mesh(
    config: MeshConfig, devices: list[jax.Device] | None = None, sequence: int = 1
) -> Mesh:
    """Return a mesh with axes `data` and `fsdp` over all devices. With `sequence` above 1, that
    many neighbouring devices stand where one stood: a third axis, `sequence`.

    One size may be -1 and takes the rest. Raises ValueError when the product does not match the
    number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if sequence > 1:
        if len(devices) % sequence:
            raise ValueError(
                f"sequence {sequence} does not divide {len(devices)} devices; choose a divisor"
            )
        groups = make_mesh(config, devices[::sequence])
        grouped = np.asarray(devices).reshape(*groups.devices.shape, sequence)
        return Mesh(grouped, (*BATCH_AXES, ROW_AXIS))
    sizes = [config.data, config.fsdp]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        if len(devices) % rest:
            raise ValueError(
                f"mesh data={sizes[0]}, fsdp={sizes[1]} does not divide {len(devices)} devices"
            )
        sizes[sizes.index(-1)] = len(devices) // rest
    if math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]} needs {math.prod(sizes)} devices,"
            f" but there are {len(devices)}; set mesh.data or mesh.fsdp"
        )
    return Mesh(np.asarray(devices).reshape(sizes), BATCH_AXES)


def path_string(path: tuple[Any, ...]) -> str:
    """Return a key path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule]) -> PartitionSpec:
    """Return the placement of one array.

    Raises ValueError if no rule or two different rules match, or if an axis is not divisible by the
    devices it would be split over.
    """
    if not shape:
        return PartitionSpec()
    matching = {axes for end, axes in (*COMMON, *rules) if re.search(rf"(^|/)({end})$", path)}
    if len(matching) != 1:
        what = f"conflicting rules {matching} match" if matching else "no sharding rule matches"
        raise ValueError(f"{what} {path!r} of shape {shape}; add a rule to its family or mixer")
    axes = matching.pop()
    for size, axis in zip(shape, axes, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"axis of {size} of {path!r} {shape} is not divisible by mesh.{axis}"
                f"={mesh.shape[axis]}; choose a divisor of {size}"
            )
    return PartitionSpec(*axes)


def tree_shardings(abstract: Any, mesh: Mesh, rules: Sequence[Rule]) -> Any:
    """Return a NamedSharding per leaf of a tree of arrays or shapes (parameters or a state)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_string(path), leaf.shape, mesh, rules)),
        abstract,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return examples split over all devices; other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: Mesh) -> int:
    """Return among how many devices, or groups of devices that share an image, a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def split_rows(network: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    """Return `network(params, x [B, H, W, C], ...)`, whose further arguments are trees of arrays
    [B, ...], with the rows of each image split over the axis `sequence`: the compiler splits all
    that follows from them, and devices exchange what a row needs of others.

    The batch becomes an axis of its own by vmap: where a layer merges images and tokens into one
    axis, only one of the two could stay split.
    """
    place = NamedSharding(mesh, PartitionSpec(BATCH_AXES, ROW_AXIS))

    def one(params: Any, *image: Any) -> jax.Array:
        return network(params, *jax.tree.map(lambda a: a[None], image))[0]

    def split(params: Any, x_BxHxWxC: jax.Array, *rest: Any) -> jax.Array:
        x_BxHxWxC = jax.lax.with_sharding_constraint(x_BxHxWxC, place)
        axes = (None, 0, *(0 for _ in rest))
        out_BxHxWxK = jax.vmap(one, in_axes=axes)(params, x_BxHxWxC, *rest)
        return jax.lax.with_sharding_constraint(out_BxHxWxK, place)

    return split


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Return per-process arrays [local batch, ...] -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
