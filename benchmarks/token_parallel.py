"""One transformer block on an image of 8192 x 8192 pixels that eight devices share by rows.

    python benchmarks/token_parallel.py

A latent of 1024 x 1024 x 4 goes through patches, one block and back: 512 x 512 = 262,144 tokens in
the widths of S/2, batch 1, float32. LiT exchanges the sums of linear attention and the rows that
its convolution needs of others; CLEAR (radius 8) the keys and values along borders. Eight virtual
CPU devices against one, in one run: what the compiled program takes of a device's memory (input,
output and what is between them), what a device gets from others by kind of communication, the time,
and how far the two results are apart. Virtual devices share the cores, so that the time shows what
the split costs, not what eight machines would gain. The position table is left out: the models hold
it whole on every device (403 MB here).

Writes `benchmarks/results/token_parallel_<platform>.json`. Needs about 8 GB of memory.
"""

from __future__ import annotations

import os
import time
from typing import Any

DEVICES = 8
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={DEVICES}"]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jax
import numpy as np
from collectives import KINDS, sent
from flax import nnx
from timing import write

from lit_jax import sharding
from lit_jax.config import MeshConfig
from lit_jax.models import functional, registry
from lit_jax.models.dit.config import DiTConfig
from lit_jax.models.layers import patchify, unpatchify

SIDE = 1024
MODELS: dict[str, dict[str, Any]] = {"LiT-S/2": {}, "CLEAR-S/2": {"window_size": 8}}
MB = 1e6


def block_of(config: DiTConfig) -> Any:
    """`f(params, x [B, H, W, C], c [B, D])`: patches -> block -> patches, all in one function."""

    def one_block(params: Any, x_BxHxWxC: jax.Array, c_BxD: jax.Array) -> jax.Array:
        model: Any = functional.with_params(config, params)
        graphdef, stacked = nnx.split(model.blocks)
        block = nnx.merge(graphdef, jax.tree.map(lambda a: a[0], stacked))
        tokens_BxNxD = model.x_embedder(patchify(x_BxHxWxC, config.patch_size))
        tokens_BxNxD = block(tokens_BxNxD, c_BxD, config.grid)[0]
        out = model.final_layer(tokens_BxNxD, c_BxD)
        return unpatchify(out, config.grid, config.patch_size)

    return one_block


def measure(name: str, fields: dict[str, Any], devices: int) -> tuple[dict[str, Any], np.ndarray]:
    """A row of the table, and the result."""
    config: Any = registry.model_config(name, input_size=SIDE, depth=1, num_classes=0, **fields)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.05 * generator.standard_normal(leaf.shape)).astype(np.float32),
        functional.abstract_params(config),
    )
    x = generator.standard_normal((1, SIDE, SIDE, config.in_channels)).astype(np.float32)
    c = generator.standard_normal((1, config.hidden_size)).astype(np.float32)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices], devices)
    network = block_of(config)
    if devices > 1:
        network = sharding.split_rows(network, mesh)
    given = jax.device_put((params, x, c), sharding.replicated(mesh))
    program = jax.jit(network).lower(*given).compile()
    memory: Any = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    jax.block_until_ready(program(*given))
    began = time.perf_counter()
    out = jax.block_until_ready(program(*given))
    seconds = time.perf_counter() - began
    received = sent(program.as_text())
    row: dict[str, Any] = {
        "block": name,
        "devices": float(devices),
        "memory MB": held / MB,
        "seconds": seconds,
    }
    for kind in KINDS[:4]:
        row[f"{kind} MB"] = sum(received.get(kind, [])) / MB
        row[f"{kind} count"] = float(len(received.get(kind, [])))
    return row, np.asarray(out)


def main() -> None:
    rows = []
    for name, fields in MODELS.items():
        (alone, expected), (shared, found) = (measure(name, fields, n) for n in (1, DEVICES))
        for row, out in ((alone, expected), (shared, found)):
            row["difference"] = float(np.abs(out - expected).max())
            row["largest"] = float(np.abs(out).max())
        rows += [alone, shared]
    about = {
        "unit": "MB (10^6 bytes) per device, seconds of the second call",
        "image": f"latent {SIDE} x {SIDE} x 4, {(SIDE // 2) ** 2} tokens, batch 1, float32",
    }
    write("token_parallel", rows, about)


if __name__ == "__main__":
    main()
