"""Depth-wise convolution of LiT: the sum of shifted products against XLA's grouped convolution.

    python benchmarks/depthwise_conv.py

Both compute the same function; forward, and gradient with respect to values and filters. The two
are timed in turns within one run, the table shows medians and their ratio. Writes
`benchmarks/results/depthwise_conv_<platform>.json`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from timing import compare, save

from lit_jax.models.attention.linear import depthwise_conv

# images, token grid, heads, channels per head: the digits student, LiT-S/2 and LiT-XL/2 at 256.
CASES = {
    "digits": (64, 8, 2, 32),
    "LiT-S/2": (16, 16, 2, 192),
    "LiT-XL/2": (8, 16, 4, 288),
}
KERNEL = 5


def grouped_conv(v_BxNxHxd: jax.Array, kernel_KxKxd: jax.Array, side: int) -> jax.Array:
    """The same convolution as `lax.conv_general_dilated` with d groups."""
    B, N, H, d = v_BxNxHxd.shape
    images = v_BxNxHxd.transpose(0, 2, 1, 3).reshape(B * H, side, side, d)
    out = jax.lax.conv_general_dilated(
        images,
        kernel_KxKxd[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=d,
    )
    return out.reshape(B, H, N, d).transpose(0, 2, 1, 3)


def shifted(v_BxNxHxd: jax.Array, kernel_KxKxd: jax.Array, side: int) -> jax.Array:
    zero = jnp.zeros(v_BxNxHxd.shape[-1])
    return depthwise_conv(v_BxNxHxd, kernel_KxKxd, zero, (side, side))


def gradient_of(conv: functools.partial[jax.Array]) -> jax.stages.Wrapped:
    def loss(v: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(conv(v, kernel)))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def main() -> None:
    rows = []
    for name, (batch, side, heads, channels) in CASES.items():
        key_v, key_k = jax.random.split(jax.random.key(0))
        v = jax.random.normal(key_v, (batch, side * side, heads, channels))
        kernel = jax.random.normal(key_k, (KERNEL, KERNEL, channels))
        ours = functools.partial(shifted, side=side)
        peer = functools.partial(grouped_conv, side=side)
        difference = jnp.max(jnp.abs(ours(v, kernel) - peer(v, kernel)))
        assert difference < 1e-3, f"{name}: the two differ by {difference}"
        for what, wrap in (("forward", jax.jit), ("gradient", gradient_of)):
            times = compare({"shifted": wrap(ours), "grouped": wrap(peer)}, v, kernel)
            rows.append({"case": name, "what": what} | times)
    save("depthwise_conv", rows, ratio=("grouped", "shifted"))


if __name__ == "__main__":
    main()
